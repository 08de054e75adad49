"""The one vocabulary of layer kinds: the purpose of a convolution or linear layer."""

from torch import nn

POINTWISE = ("expand", "project", "shortcut", "se", "pointwise")
"""The kinds of 1x1 convolution. `pointwise` is one whose purpose is unknown."""

KINDS = ("conv", "expand", "depthwise", "project", "shortcut", "se", "fc", "pointwise", "other")
"""Every kind, in the order of tables.

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
    """Return the kind that follows from a dotted name, for tables without the network.

    It knows the names of this library, such as `blocks.0.conv_expand` and
    `blocks.0.se.conv_expand`, and torchvision's `downsample`. Any other name is of kind `other`.
    """
    *parents, leaf = name.split(".")
    if "se" in parents:
        return "se"
    return "shortcut" if "downsample" in parents else _BY_NAME.get(leaf, "other")


def layer_kind(name: str, layer: nn.Module) -> str | None:
    """Return the kind of a layer, a name of `KINDS`, or None for a layer without a matrix.

    Pointwise is a convolution with a 1x1 kernel, as in the released code of [kim2020]. The name
    tells its kind, dotted as inside its network. For names of other libraries the shape does: an
    expansion has more output than input channels, a projection fewer.
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
    """Return the kind of every weight of two or more dimensions by name, in network order."""
    layers = dict(model.named_modules())
    owners = {n: n.rpartition(".")[0] for n, weight in model.named_parameters() if weight.ndim > 1}
    return {name: layer_kind(owner, layers[owner]) or "other" for name, owner in owners.items()}
