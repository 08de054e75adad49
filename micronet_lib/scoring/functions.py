"""The operations of each torch function: the table `RULES` at the end.

A rule takes the recorder of `scoring.operations`, the function's output and its arguments under
PyTorch's names. It returns operations.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from micronet_lib.scoring.dataflow import storage, tensors

if TYPE_CHECKING:
    from micronet_lib.scoring.operations import Kind, Operation, Recorder

    Operations = list[Operation]
    Rule = Callable[..., Operations]


def _conv(
    rec: Recorder, out: Tensor, input: Tensor, weight: Tensor, bias: Any = None, *_: Any, **__: Any
) -> Operations:
    return [rec.dot("conv", out, input, weight, bias, fan_in=prod(weight.shape[1:]))]


def _linear(
    rec: Recorder, out: Tensor, input: Tensor, weight: Tensor, bias: Any = None
) -> Operations:
    return [rec.dot("linear", out, input, weight, bias, fan_in=weight.shape[-1])]


def _matmul(rec: Recorder, out: Tensor, input: Tensor, other: Tensor) -> Operations:
    data, weight = (input, other) if rec.flow.is_data(input) else (other, input)
    # As in a linear layer, the weights of one output are a row.
    rows = weight if weight is input or weight.ndim == 1 else weight.mT
    return [rec.dot("linear", out, data, rows, None, fan_in=input.shape[-1])]


def _batch_norm(
    rec: Recorder, out: Tensor, input: Tensor, running_mean: Any, running_var: Any,
    weight: Any = None, bias: Any = None, training: bool = False, *_: Any, **__: Any,
) -> Operations:  # fmt: skip
    if training or running_mean is None:
        raise rec.refusal("batch_norm with the statistics of the batch")
    return [rec.norm(out, input, running_mean)]


def _dropout(
    rec: Recorder, out: Tensor, input: Tensor, p: float = 0.5, training: bool = True, **_: Any
) -> Operations:
    if training:
        raise rec.refusal("dropout in training mode")
    return []


def _pool(kind: Kind, dims: int) -> Rule:
    def rule(
        rec: Recorder, out: Tensor, input: Tensor, kernel_size: Any, *_: Any, **__: Any
    ) -> Operations:
        window = kernel_size**dims if isinstance(kernel_size, int) else prod(kernel_size)
        return [rec.operation(kind, out, reads=out.numel() * window)]

    return rule


def _adaptive_pool(kind: Kind, dims: int) -> Rule:
    def rule(rec: Recorder, out: Tensor, input: Tensor, *_: Any, **__: Any) -> Operations:
        sides = zip(input.shape[-dims:], out.shape[-dims:], strict=True)
        # Along each side, window i of m reaches from floor(i * n / m) to ceil((i + 1) * n / m).
        covered = (sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in sides)
        return [rec.operation(kind, out, reads=prod(out.shape[:-dims]) * prod(covered))]

    return rule


def _reduce(kind: Kind) -> Rule:
    return lambda rec, out, input, *_, **__: [rec.operation(kind, out, reads=input.numel())]


def _constants(rec: Recorder, *arguments: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(arguments) if not rec.flow.is_data(tensor)]


def _each(kind: Kind) -> Rule:
    return lambda rec, out, *args, **kwargs: [
        rec.operation(kind, out, *_constants(rec, args, kwargs))
    ]


def _clamp(
    rec: Recorder, out: Tensor, input: Tensor, min: Any = None, max: Any = None
) -> Operations:
    bounds = (bound for bound in (min, max) if bound is not None)
    return [rec.operation("compare", out, *_constants(rec, bound)) for bound in bounds]


def _softmax(
    rec: Recorder, out: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any
) -> Operations:
    # Subtracting the largest entry first is for numerical safety only.
    total = out.select(1 if dim is None else dim, 0)
    return [
        rec.operation("unary", out),
        rec.operation("sum", total, reads=out.numel()),
        rec.operation("product", out),
    ]


def _arithmetic(of_data: Kind, with_constant: Kind) -> Rule:
    """Return the rule for two tensors, or a tensor and a constant. Numbers need no storage."""

    def rule(rec: Recorder, out: Tensor, input: Any, other: Any, alpha: float = 1) -> Operations:
        scaled = [] if alpha == 1 else [rec.operation("product", out)]
        operands, constants = list(tensors((input, other))), _constants(rec, input, other)
        if len(operands) == 2 and not constants:
            same = operands[0].shape == operands[1].shape
            kind: Kind = "product" if of_data == "gate" and same else of_data
            return [*scaled, rec.operation(kind, out)]
        return [*scaled, rec.operation(with_constant, out, *constants)]

    return rule


def _interpolate(
    rec: Recorder, out: Tensor, input: Tensor, size: Any = None, scale_factor: Any = None,
    mode: str = "nearest", *_: Any, **__: Any,
) -> Operations:  # fmt: skip
    if mode not in ("nearest", "nearest-exact", "bilinear"):
        raise rec.refusal(f"interpolate in mode {mode!r}")
    return [rec.operation("bilinear", out)] if mode == "bilinear" else []


def _join(rec: Recorder, out: Tensor, input: Any, *_: Any, **__: Any) -> Operations:
    return [rec.operation("constant", part, part) for part in _constants(rec, input)]


def _index(rec: Recorder, out: Any, input: Tensor, index: Any, value: Any = None) -> Operations:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is ... or isinstance(part, int | slice) for part in parts):
        raise rec.refusal("indexing by a list or tensor")
    return [rec.operation("constant", part, part) for part in _constants(rec, value)]


def _reshape(rec: Recorder, out: Tensor, input: Tensor, *_: Any, **__: Any) -> Operations:
    """Return a permutation if a transposed tensor is written in its new order.

    The organisers charge it as a product with a permutation matrix, as for ShuffleNet's channels.
    """
    sides = [side for side in zip(input.stride(), input.shape, strict=True) if min(side) > 0]
    sides = [side for side in sides if side[1] > 1]
    in_memory = sorted(sides, key=lambda side: -side[0])
    moved = [a[1] for a, b in zip(sides, in_memory, strict=True) if a != b]
    if not moved or storage(out) == storage(input):
        return []
    places = prod(moved)
    return [rec.operation("permutation", out, weight_shape=(places, places), nonzeros=places)]


def _free(rec: Recorder, out: Any, *_: Any, **__: Any) -> Operations:
    return []


_FUNCTIONS: tuple[tuple[Rule, str], ...] = (
    (_conv, "conv1d conv2d conv3d"),
    (_linear, "linear"),
    (_matmul, "matmul mm bmm"),
    (_batch_norm, "batch_norm"),
    (_pool("pool", 1), "avg_pool1d"),
    (_pool("pool", 2), "avg_pool2d"),
    (_pool("max", 1), "max_pool1d"),
    (_pool("max", 2), "max_pool2d"),
    (_adaptive_pool("pool", 1), "adaptive_avg_pool1d"),
    (_adaptive_pool("pool", 2), "adaptive_avg_pool2d"),
    (_adaptive_pool("max", 1), "adaptive_max_pool1d"),
    (_adaptive_pool("max", 2), "adaptive_max_pool2d"),
    (_reduce("pool"), "mean"),
    (_reduce("sum"), "sum"),
    (_reduce("max"), "amax amin argmax argmin"),
    (_softmax, "softmax"),
    (_each("hard_swish"), "hardswish"),
    (_each("hard_sigmoid"), "hardsigmoid"),
    (_each("swish"), "silu"),
    (_each("sigmoid"), "sigmoid"),
    (_each("relu"), "relu"),
    (_each("relu6"), "relu6 hardtanh"),
    (_each("leaky_relu"), "leaky_relu prelu"),
    (_clamp, "clamp clip"),
    (_each("compare"), "maximum minimum clamp_min clamp_max gt ge lt le"),
    (_each("unary"), "abs neg exp log sqrt rsqrt reciprocal tanh square pow round floor ceil sign"),
    (_arithmetic("gate", "product"), "mul multiply rmul imul"),
    (
        _arithmetic("product", "product"),
        "div divide true_divide truediv rtruediv itruediv rdiv idiv",
    ),
    (_arithmetic("residual", "shift"), "add radd iadd sub subtract rsub isub"),
    (_interpolate, "interpolate"),
    (_index, "getitem setitem"),
    (_reshape, "contiguous reshape flatten"),
    # Shapes, views, copies and memory order: no arithmetic.
    (
        _free,
        "view view_as unflatten permute transpose movedim t squeeze unsqueeze expand expand_as",
    ),
    (_join, "cat concat stack"),
    (_free, "split chunk unbind iter narrow select pad repeat clone detach"),
    (_free, "size dim ndimension numel stride len get is_contiguous is_floating_point is_complex"),
    (_free, "copy zeros_like ones_like empty_like new_zeros new_ones new_empty"),
    (_dropout, "dropout dropout1d dropout2d dropout3d"),
    # Conversions of format are free where 32 bits hold the values exactly.
    (_free, "to type type_as float half double bfloat16"),
    (_free, "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"),
)
"""A rule and its functions, named without outer underscores.

Comparisons, transcendental functions and changes of sign are one operation each: the largest of `n`
values costs `n - 1`, as ReLU costs one. Softmax is an exponential, a sum and a division. Nearest
interpolation is a copy; bilinear is four products and three sums for each output. A transposition
is charged when the tensor is next written in its new order. A constant that is joined to data or
compared with it is stored.
"""

RULES = {name: rule for rule, names in _FUNCTIONS for name in names.split()}
"""Every function that the counter knows, by name without outer underscores."""
