"""The book's figures: one function a figure, a table goes in and a `Figure` comes out."""

from micronet_lib.plots.architecture import *  # noqa: F403
from micronet_lib.plots.scoring import *  # noqa: F403
from micronet_lib.plots.status import *  # noqa: F403
from micronet_lib.plots.tables import *  # noqa: F403
