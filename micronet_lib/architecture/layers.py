"""The one vocabulary of layer kinds: what a convolution or linear layer is for."""

from torch import nn

POINTWISE = ("expand", "project", "shortcut", "se", "pointwise")
"""The kinds of convolution whose kernel is one wide; `pointwise` is one of no other kind."""

KINDS = ("conv", "expand", "depthwise", "project", "shortcut", "se", "fc", "pointwise", "other")
"""Every kind in the order of tables.

`conv` is a full convolution, in a MicroNet the stem. `other` is a weight that no rule names.
"""

_BY_NAME = {
    "conv": "conv",
    "conv_expand": "expand",
    "conv_dw": "depthwise",
    "conv_project": "project",
    "conv_shortcut": "shortcut",
    "classifier": "fc",
}


def named_kind(name: str) -> str:
    """Return the kind that a dotted name alone tells, for tables without the network.

    These are the names of this library, such as `blocks.0.conv_expand` and
    `blocks.0.se.conv_expand`, and torchvision's `downsample`. Other names are of kind `other`.
    """
    *parents, leaf = name.split(".")
    if "se" in parents:
        return "se"
    return "shortcut" if "downsample" in parents else _BY_NAME.get(leaf, "other")


def layer_kind(name: str, layer: nn.Module) -> str | None:
    """Return what a layer is for, a name of `KINDS`; None if it has no matrix.

    Pointwise is what the released code of [kim2020] takes for it: a convolution whose kernel is one
    wide. The name tells which of them it is. Where it does not, as in networks of another library,
    the shape does: an expansion has more channels out than in, a projection fewer.

    Args:
        name: dotted, inside its network.
        layer: any module.
    """
    if isinstance(layer, nn.Linear):
        return "fc"
    if not isinstance(layer, nn.Conv2d):
        return None
    if layer.weight.shape[3] > 1:
        return "depthwise" if 1 < layer.groups == layer.in_channels else "conv"
    kind = named_kind(name)
    if kind in POINTWISE:
        return kind
    if layer.out_channels == layer.in_channels:
        return "pointwise"
    return "expand" if layer.out_channels > layer.in_channels else "project"


def weight_kinds(model: nn.Module) -> dict[str, str]:
    """Return the kind of every weight of two or more dimensions, by its name in network order."""
    layers = dict(model.named_modules())
    owners = {n: n.rpartition(".")[0] for n, weight in model.named_parameters() if weight.ndim > 1}
    return {name: layer_kind(owner, layers[owner]) or "other" for name, owner in owners.items()}
