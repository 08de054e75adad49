"""The agenda: which points to measure first where time is short, and with how many seeds."""

from dataclasses import dataclass

THREE = (0, 1, 2)


@dataclass(frozen=True)
class Item:
    """Points of a sweep, measured with some seeds, one seed after the other.

    Attributes:
        question: it answers, in a few words.
        sweep: name of the sweep.
        points: pattern of their names, such as `linear-*`.
        seeds: of the runs.
    """

    question: str
    sweep: str
    points: str = "*"
    seeds: tuple[int, ...] = (0,)


AGENDA = (
    Item("below the winning score", "beyond"),
    Item("zeros or bits", "zeros_and_bits"),
    Item("how far plain rounding goes", "rounding"),
    Item("rounding without labels", "adaptive_rounding"),
    Item("the spread of the networks in a file", "beyond", "allocated_3*", THREE),
    Item("what else pays", "what_else"),
    Item("an early exit on top", "exit_on_top"),
    Item("what long rounds buy", "rounds", "linear-*", THREE),
    Item("other ways to prune", "rounds"),
    Item("does SRIP help", "srip_placement", "none", THREE),
    Item("does SRIP help", "srip_placement", "pointwise", THREE),
    Item("SRIP everywhere", "srip_placement", "all"),
    Item("does an early exit pay", "early_exit", "*", THREE),
    Item("which ternary scheme", "ternary"),
    Item("are learned widths better", "adjustable_quantization"),
    Item("are learned widths better again", "adjustable_quantization", "[lu]*_[45]", THREE),
    Item("which ternary scheme again", "ternary", "[!r]*", THREE),
    Item("do zeros and few bits cost robustness", "corruptions", "[!t]*"),
    Item("do zeros and few bits cost stability", "perturbations", "[!t]*"),
    Item("regularizers for a small network", "regularizers"),
    Item("do the tweaks add up", "tweaks", "*", THREE),
    Item("do regularizers and tweaks buy robustness", "corruptions", "trained_*"),
    Item("do regularizers and tweaks buy stability", "perturbations", "trained_*"),
    Item("which head retrieves unseen classes", "retrieval"),
    Item("do superclasses teach classes", "transfer"),
    Item("SRIP everywhere again", "srip_placement", "all", THREE),
    Item("does SRIP help on the classifier", "srip_fc", "*", THREE),
    Item("do the regularizers add up", "assembled", "E[0-6]"),
    Item("the entry from random weights", "pipeline"),
    Item("the paper's stages", "stages", "3.0-*"),
    Item("the stages of small networks", "stages", "[12].0-vanilla"),
    Item("the stages of small networks", "stages", "[12].0-cutmix"),
    Item("SRIP elsewhere", "srip_placement"),
    Item("forms of label smoothing", "label_smoothing"),
    Item("the paper's stages again", "stages", "3.0-*", THREE),
    Item("forms of label smoothing again", "label_smoothing", "*", THREE),
)
"""The order of the evidence, the most wanted first. An item may name points of an earlier one."""
