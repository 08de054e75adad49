"""Networks: the contract, the registry, and the layers they are made of (chapter 01)."""

from micronet_lib.architecture.initialization import (
    INITIALIZATIONS,
    initialize,
    released,
    semi_orthogonal,
)
from micronet_lib.architecture.micronet import EXPAND_RATIOS, MBConv, build, get_architecture

__all__ = [
    "EXPAND_RATIOS",
    "INITIALIZATIONS",
    "MBConv",
    "build",
    "get_architecture",
    "initialize",
    "released",
    "semi_orthogonal",
]
