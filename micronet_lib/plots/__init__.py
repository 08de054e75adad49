"""The book's figures: one function per figure, from a table to a `Figure`.

An argument `source` is the figure's footer: where its numbers come from, and with what.
"""

from micronet_lib.plots.adjustable_quantization import *  # noqa: F403
from micronet_lib.plots.architecture import *  # noqa: F403
from micronet_lib.plots.assembled_cnn import *  # noqa: F403
from micronet_lib.plots.augmentation import *  # noqa: F403
from micronet_lib.plots.beyond import *  # noqa: F403
from micronet_lib.plots.contest import *  # noqa: F403
from micronet_lib.plots.early_exit import *  # noqa: F403
from micronet_lib.plots.front import *  # noqa: F403
from micronet_lib.plots.label_smoothing import *  # noqa: F403
from micronet_lib.plots.label_smoothing_similarity import *  # noqa: F403
from micronet_lib.plots.pruning import *  # noqa: F403
from micronet_lib.plots.report import *  # noqa: F403
from micronet_lib.plots.scoring import *  # noqa: F403
from micronet_lib.plots.scoring_area import *  # noqa: F403
from micronet_lib.plots.srip import *  # noqa: F403
from micronet_lib.plots.srip_spectra import *  # noqa: F403
from micronet_lib.plots.status import *  # noqa: F403
from micronet_lib.plots.tables import *  # noqa: F403
from micronet_lib.plots.ternary import *  # noqa: F403
from micronet_lib.plots.training import *  # noqa: F403
