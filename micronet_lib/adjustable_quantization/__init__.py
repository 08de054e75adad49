"""Ranges and bit widths that are learned channel by channel (chapter 09)."""

from micronet_lib.adjustable_quantization.network import Adjust, AdjustableMicroNet
from micronet_lib.adjustable_quantization.price import Steer, price, shared_max
from micronet_lib.adjustable_quantization.ranges import MAX_BITS, MIN_BITS, adjusted, learned_bits
