"""Weights of three values, or of two (chapter 08)."""

from micronet_lib.ternary.network import Ternarize, TernaryNetwork, narrow_sums
from micronet_lib.ternary.packed import PackedTernary, pack_ternary, sparse_binary, unpack_ternary
from micronet_lib.ternary.schemes import (
    SCHEMES,
    deviation_signs,
    entropy_signs,
    sparse_signs,
    ternary_weight,
    threshold_signs,
)
from micronet_lib.ternary.stored import StoredTernaryNetwork, in_bitmasks
