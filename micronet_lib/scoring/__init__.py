"""The challenge's score: operations, prices, bill, free savings (chapter 06).

A *MAC* is one multiplication and one addition of a convolution, linear layer or matrix product.
`macs` counts those with a non-zero weight, `dense_macs` all of them. *FLOPs* are multiplications
and additions, so two for each MAC; `torch.utils.flop_counter` counts them in the same layers, for
dense weights. Many papers print MACs as FLOPs. The challenge's *operations* are the multiplications
and additions of everything, activations and sums included, each weighted by its bit width.
"""

from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network, score_operations
from micronet_lib.scoring.dead_channels import SAVINGS, apply_savings
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS, AuthorsRules
