"""SRIP, orthogonality regularisation (chapter 02)."""

from micronet_lib.srip.batches import Srip
from micronet_lib.srip.penalty import (
    PLACEMENTS,
    SripConfig,
    exact_deviation,
    spectrum,
    srip_network_penalty,
    srip_penalty,
    srip_weights,
)
