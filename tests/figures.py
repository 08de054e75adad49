"""What a figure says in words."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def labels(fig: Figure) -> list[str]:
    """Every text of a figure that was drawn."""
    fig.canvas.draw()
    return [text.get_text() for text in fig.findobj(plt.Text)]


def texts(fig: Figure) -> str:
    """The same as one string."""
    return " ".join(labels(fig))
