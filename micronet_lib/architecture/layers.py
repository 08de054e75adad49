"""Convolutions and linear layers: the one vocabulary of their kinds, and their weights.

A weight is found by its owner, not by its number of dimensions: a class token, a position embedding
or a layer scale has two or more, too. It is the tensor that the layer computes with. Under
`torch.nn.utils.prune` or a parametrization that is no parameter, but derives from one.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from micronet_lib.errors import InputError

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


# Attention reads the weights of its linear layers under names of its own.
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield path, layer and attribute of every weight in network order, shared ones once."""
    seen = set[int]()
    for path, layer in model.named_modules():
        names: tuple[str, ...] = ()
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            names = ("weight",)
        elif isinstance(layer, nn.MultiheadAttention):
            names = tuple(name for name in _ATTENTION if getattr(layer, name) is not None)
        for name in names:
            parameter = _behind(layer, name)
            if parameter is None or id(parameter) not in seen:
                seen.add(id(parameter))
                yield path, layer, name


def _behind(layer: nn.Module, name: str) -> nn.Parameter | None:
    """Return the parameter that a weight is, or derives from element by element; else None."""
    found = layer._parameters.get(name)
    if found is None and hasattr(layer, f"{name}_mask"):
        found = layer._parameters.get(f"{name}_orig")
    if found is None and parametrize.is_parametrized(layer, name):
        found = getattr(getattr(layer.parametrizations, name), "original", None)
    return found


def weight_of(layer: nn.Module, name: str = "weight") -> Tensor:
    """Return the tensor that a layer computes with, from its parameters of this moment."""
    mask = getattr(layer, f"{name}_mask", None)
    if isinstance(mask, Tensor):  # of torch.nn.utils.prune, which updates it at the next call only
        return getattr(layer, f"{name}_orig") * mask
    return getattr(layer, name)


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every convolution and linear layer by name, in network order.

    It is the parameter, or what `torch.nn.utils.prune` or a parametrization make of it. The
    projections of `nn.MultiheadAttention` are included.
    """
    return {_full(path, name): weight_of(layer, name) for path, layer, name in _owned(model)}


def weight_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters behind `layer_weights`, under the same names, for writing.

    Raises:
        InputError: a weight derives from several tensors, or from one of another shape.
    """
    found = {}
    for path, layer, name in _owned(model):
        parameter = _behind(layer, name)
        if parameter is None or parameter.shape != weight_of(layer, name).shape:
            raise InputError(
                f"{_full(path, name)} is computed from other tensors: make it a parameter first "
                "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove or "
                "remove_weight_norm)"
            )
        found[_full(path, name)] = parameter
    return found


def plain_weight(layer: nn.Module, path: str) -> nn.Parameter:
    """Return a layer's weight if it is a parameter itself.

    Raises:
        InputError: it is computed from other tensors.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or parametrize.is_parametrized(layer, "weight"):
        raise InputError(
            f"{path}.weight is computed from other tensors (a parametrization or a hook), and "
            "only a parameter can be set or regularised: remove it first"
        )
    return weight


def check_plain_weights(model: nn.Module) -> None:
    """Raise an error if a weight is no parameter, for what builds a network anew from its tensors.

    Raises:
        InputError: as for `plain_weight`.
    """
    for path, layer in model.named_modules():
        if layer_kind(path, layer) is not None:
            plain_weight(layer, path)


def weight_kinds(model: nn.Module) -> dict[str, str]:
    """Return the kind of every weight of `layer_weights` by name, in network order."""
    return {
        _full(path, name): layer_kind(path, layer) or "other" for path, layer, name in _owned(model)
    }
