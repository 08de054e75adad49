"""The one vocabulary of layer kinds: what a convolution or linear layer is for."""

from torch import nn

POINTWISE = ("expand", "project", "shortcut", "se", "pointwise")
"""The kinds of convolution whose kernel is one wide; `pointwise` in networks of another make."""

KINDS = ("conv", "expand", "depthwise", "project", "shortcut", "se", "fc", "pointwise", "other")
"""Every kind in the order of tables; `conv` is the stem, `other` what no rule names."""


def layer_kind(name: str, layer: nn.Module) -> str | None:
    """What a layer is for, as `PLACEMENTS` calls it; None if it has no matrix.

    Pointwise is what the released code takes for it: a convolution whose kernel is one wide. Which
    of them it is, the name tells, as in `blocks.0.conv_expand` and `blocks.0.se.conv_expand`.
    """
    if isinstance(layer, nn.Linear):
        return "fc"
    if not isinstance(layer, nn.Conv2d):
        return None
    if layer.weight.shape[3] == 1:
        *parents, leaf = name.split(".")
        kind = "se" if parents[-1:] == ["se"] else leaf.removeprefix("conv_")
        return kind if kind in POINTWISE else "pointwise"
    return "depthwise" if 1 < layer.groups == layer.in_channels else "conv"
