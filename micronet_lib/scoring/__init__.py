"""The challenge's score: operations, prices, bill, free savings (chapter 06)."""

from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network, score_operations
from micronet_lib.scoring.dead_channels import SAVINGS, apply_savings
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import WinnersRules, get_rules

__all__ = [
    "OPS_BASE",
    "PARAM_BASE",
    "SAVINGS",
    "WinnersRules",
    "apply_savings",
    "get_rules",
    "record_operations",
    "score_network",
    "score_operations",
]
