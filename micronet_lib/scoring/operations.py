"""What one forward pass executes: a list of operations with shapes and zeros, no prices.

`record_operations` runs the network once and listens to every torch function, so functional
activations, residual additions and gate products are seen as well as modules, and control flow is
followed rather than traced. A function it has no rule for is an error, never a silent zero.
`micronet_lib.scoring.bill` puts prices on the list.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from micronet_lib.errors import InputError

Kind = Literal[
    "conv",
    "linear",
    "batch_norm",
    "hard_swish",
    "swish",
    "relu",
    "relu6",
    "sigmoid",
    "pool",
    "gate",
    "residual",
    "product",
    "shift",
]


@dataclass(frozen=True)
class Operation:
    """One executed operation on one image.

    Attributes:
        name: where in the network, for example `blocks.3.conv_dw`.
        out_shape: `(C, H, W)`, or `(C,)` after the head.
        out_chs: filters of a convolution, rows of a linear layer.
        fan_in: inputs of one output: `k * k * in_chs / groups`, or `in_chs`.
        weight_shape: as stored; `()` without a weight.
        nonzeros: non-zero weights.
        bias: entries of an explicit bias.
        bias_nonzeros: those of them that are not zero.
        folded_bias: entries of the bias that merging a following batch norm will add.
        window: inputs that one pooled output averages.
        expanded_chs: channels of the latest depthwise convolution before this operation.
        is_first: reads the image itself.
    """

    name: str
    kind: Kind
    out_shape: tuple[int, ...]
    out_chs: int = 0
    fan_in: int = 0
    weight_shape: tuple[int, ...] = ()
    nonzeros: int = 0
    bias: int = 0
    bias_nonzeros: int = 0
    folded_bias: int = 0
    window: int = 0
    expanded_chs: int = 0
    is_first: bool = False

    @property
    def num_outputs(self) -> int:
        """Elements of the output for one image."""
        return prod(self.out_shape)

    @property
    def num_weights(self) -> int:
        """Weights of the dense tensor, zeros included."""
        return prod(self.weight_shape) if self.weight_shape else 0

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is zero."""
        return 1 - self.nonzeros / self.num_weights if self.num_weights else 0.0

    @property
    def macs(self) -> float:
        """Multiply-accumulates with a weight that is not zero; padding counts as data."""
        return self.num_outputs * self.fan_in * (1 - self.sparsity)


_FREE = {
    # Shapes, views, copies and memory order: no arithmetic on activations.
    *("flatten", "view", "reshape", "contiguous", "permute", "transpose", "squeeze", "unsqueeze"),
    *("size", "dim", "to", "clone", "detach", "expand", "stride", "is_contiguous", "numel"),
    *("dropout", "__get__", "dropout2d", "is_floating_point"),
}


@dataclass
class _Recorder(TorchFunctionMode):
    """Turns the torch functions of one forward pass into operations."""

    names: dict[int, str]
    operations: list[Operation] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    produced: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    expanded_chs: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        rule = _RULES.get(name)
        if rule is None and name not in _FREE:
            raise InputError(f"no counting rule for the torch function {name!r}")
        out = func(*args, **kwargs)
        if rule is None:
            return out
        operation = rule(self, out, *args, **kwargs)
        if operation is not None:
            # The tensor is kept with its index: while it lives, its id names nothing else.
            self.produced[id(out)] = (out, len(self.operations))
            is_first = operation.kind == "conv" and not self.operations
            self.operations.append(
                replace(operation, expanded_chs=self.expanded_chs, is_first=is_first)
            )
        return out

    def name_of(self, weight: Tensor | None, kind: str) -> str:
        """The parameter's owner, or the running module with the operation's kind behind it."""
        if weight is not None and id(weight) in self.names:
            return self.names[id(weight)]
        return ".".join(part for part in (self.modules[-1] if self.modules else "", kind) if part)

    def weighted(self, kind: Kind, out: Tensor, weight: Tensor, bias: Tensor | None) -> Operation:
        """A convolution or linear layer."""
        return Operation(
            name=self.name_of(weight, kind),
            kind=kind,
            out_shape=tuple(out.shape[1:]),
            out_chs=weight.shape[0],
            fan_in=prod(weight.shape[1:]),
            weight_shape=tuple(weight.shape),
            nonzeros=int(torch.count_nonzero(weight.detach())),
            bias=0 if bias is None else bias.numel(),
            bias_nonzeros=0 if bias is None else int(torch.count_nonzero(bias.detach())),
        )

    def elementwise(self, kind: Kind, out: Tensor, window: int = 0) -> Operation:
        """An operation without weights."""
        return Operation(self.name_of(None, kind), kind, tuple(out.shape[1:]), window=window)


def _conv(rec: _Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Any = None,
          *args: Any, **kwargs: Any) -> Operation:  # fmt: skip
    if weight.shape[1] == 1 and x.shape[1] == weight.shape[0]:
        rec.expanded_chs = weight.shape[0]
    return rec.weighted("conv", out, weight, bias)


def _linear(rec: _Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> Operation:
    return rec.weighted("linear", out, weight, bias)


def _batch_norm(
    rec: _Recorder, out: Tensor, x: Tensor, *args: Any, **kwargs: Any
) -> Operation | None:
    source = rec.produced.get(id(x))
    if source is not None:
        index = source[1]
        before = rec.operations[index]
        if before.kind == "conv":
            # Merged into the convolution at no cost but one bias a filter.
            rec.operations[index] = replace(
                before, folded_bias=0 if before.bias else before.out_chs
            )
            return None
    return rec.elementwise("batch_norm", out)


def _pool(rec: _Recorder, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Operation:
    return rec.elementwise("pool", out, window=prod(x.shape[1:]) // prod(out.shape[1:]))


def _multiply(rec: _Recorder, out: Tensor, a: Tensor, b: Any, *args: Any) -> Operation:
    gates = isinstance(b, Tensor) and a.shape != b.shape
    return rec.elementwise("gate" if gates else "product", out)


def _add(rec: _Recorder, out: Tensor, a: Tensor, b: Any, *args: Any, **kwargs: Any) -> Operation:
    return rec.elementwise("residual" if isinstance(b, Tensor) else "shift", out)


def _activation(kind: Kind) -> Callable[..., Operation]:
    return lambda rec, out, *args, **kwargs: rec.elementwise(kind, out)


_RULES: dict[str, Callable[..., Operation | None]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "adaptive_avg_pool2d": _pool,
    "avg_pool2d": _pool,
    "mean": _pool,
    "mul": _multiply,
    "__mul__": _multiply,
    "__rmul__": _multiply,
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
    "__iadd__": _add,
    "add_": _add,
    "hardswish": _activation("hard_swish"),
    "silu": _activation("swish"),
    "relu": _activation("relu"),
    "relu6": _activation("relu6"),
    "hardtanh": _activation("relu6"),
    "sigmoid": _activation("sigmoid"),
}


@contextmanager
def _module_path(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the dotted path of the running module on the stack."""
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_operations(
    model: nn.Module, input_shape: tuple[int, ...] = (3, 32, 32)
) -> tuple[Operation, ...]:
    """Every operation of one image's forward pass in evaluation mode, in order of execution.

    Args:
        model: any network; its mode and device are left as they were.
        input_shape: `(C, H, W)` of one image.

    Raises:
        InputError: for a torch function that no rule covers.
    """
    owners = {
        id(parameter): path.rpartition(".")[0] for path, parameter in model.named_parameters()
    }
    like = next(model.parameters())
    image = torch.zeros((1, *input_shape), dtype=like.dtype, device=like.device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    recorder = _Recorder(owners)
    try:
        with torch.no_grad(), _module_path(model, recorder.modules), recorder:
            model(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    return tuple(recorder.operations)
