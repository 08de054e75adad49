"""The operations of one forward pass, with shapes and zeros but without prices.

`record_operations` runs the network once and intercepts every torch function. So it sees functional
activations, residual additions and gate products as well as modules, and follows control flow.
`scoring.functions` says what each function is; a function that is missing there is an error that
names it and the calling module. `scoring.rules` prices the list.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from itertools import chain
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from micronet_lib.architecture.network import Network, evaluated
from micronet_lib.errors import InputError
from micronet_lib.scoring.dataflow import Dataflow, storage, tensors
from micronet_lib.scoring.functions import RULES

SAID = (
    *("weight_bits", "activation_bits", "accumulator_bits"),
    *("scale_bits", "bias_bits", "constant_bits", "work"),
)
"""Attributes of a module that say what its operations cost."""

Kind = Literal[
    "conv", "linear", "matmul", "batch_norm", "pool", "sum", "max", "bilinear",
    "hard_swish", "hard_sigmoid", "swish", "sigmoid", "relu", "relu6", "leaky_relu",
    "compare", "unary", "gate", "residual", "product", "shift", "permutation", "constant",
]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Multiplications and additions of one output position of a layer, where they are not plain.

    Attributes:
        mult_widths: width -> number of multiplications.
        add_widths: width of the result -> number of additions in a tree of additions.
    """

    mult_widths: Mapping[int, int]
    add_widths: Mapping[int, int]

    @property
    def num_adds(self) -> int:
        """The number of additions."""
        return sum(self.add_widths.values())


@dataclass(frozen=True)
class Operation:
    """One executed operation on one image.

    Attributes:
        name: its place in the network, for example `blocks.3.conv_dw`.
        kind: type of operation. `unary` is a function of one value, such as an exponential;
            `compare` the larger or smaller of two; `gate` a product of two activations of different
            shapes, `product` any other; `residual` a sum of two activations, `shift` of one and a
            constant; `constant` is joined to data without arithmetic.
        out_shape: `(C, H, W)`, or `(C,)` after the head.
        exit: index of the first exit that needs it; 0 in a network with one exit.
        reads: inputs that the windows of a pooling or sum cover, overlaps counted each time.
            Padding counts as data.
        out_chs: filters of a convolution, rows of a linear layer.
        fan_in: inputs of one output of a dot product: `k * k * in_chs / groups`, or `in_chs`.
        weight_shape: of the constants to store; `()` without any.
        nonzeros: number of these constants that are not zero.
        most_nonzeros: the most of them in one filter or row of a dot product.
        shared: an earlier operation stores the same constants.
        bias: entries of an explicit bias.
        bias_nonzeros: number of these entries that are not zero.
        bias_shared: an earlier operation stores the same bias.
        folded_bias: entries of the bias that merging a following batch norm adds.
        is_first: whether it reads the image.
        weight_bits: width of the weights, where the layer sets it (`record_operations`).
        activation_bits: width of the inputs, likewise.
        accumulator_bits: width of the sums, likewise.
        scale_bits: stored width of a filter's scale, likewise.
        bias_bits: stored width of a bias, likewise.
        constant_bits: bits of further constants of the layer, likewise, such as the unit of its
            scales.
        work: what one position costs, likewise, where equal weights and shared sums save some.
    """

    name: str
    kind: Kind
    out_shape: tuple[int, ...]
    exit: int = 0
    reads: int = 0
    out_chs: int = 0
    fan_in: int = 0
    weight_shape: tuple[int, ...] = ()
    nonzeros: int = 0
    most_nonzeros: int = 0
    shared: bool = False
    bias: int = 0
    bias_nonzeros: int = 0
    bias_shared: bool = False
    folded_bias: int = 0
    is_first: bool = False
    weight_bits: int | None = None
    activation_bits: int | None = None
    accumulator_bits: int | None = None
    scale_bits: int | None = None
    bias_bits: int | None = None
    constant_bits: int | None = None
    work: Work | None = None

    @property
    def num_outputs(self) -> int:
        """Elements of the output for one image."""
        return prod(self.out_shape)

    @property
    def num_weights(self) -> int:
        """Constants of the dense tensor, zeros included."""
        return prod(self.weight_shape) if self.weight_shape else 0

    @property
    def sparsity(self) -> float:
        """Fraction of the constants that is zero."""
        return 1 - self.nonzeros / self.num_weights if self.num_weights else 0.0

    @property
    def macs(self) -> float:
        """Multiply-accumulates with a non-zero weight; padding counts as data."""
        return self.num_outputs * self.fan_in * (1 - self.sparsity)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates with every weight."""
        return self.num_outputs * self.fan_in


class _Norm(NamedTuple):
    """A batch norm: the operation before it, and the memory of its input and running mean."""

    layer: int | None
    input: int
    key: int


class Recorder(TorchFunctionMode):
    """Turns the torch functions of one forward pass into operations."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.flow = Dataflow(model, image)
        self.modules = dict(model.named_modules())
        self.running = [""]
        self.operations: list[Operation] = []
        self._uses: dict[int, list[int]] = {}
        self._norms: dict[int, _Norm] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        read = list(tensors((args, kwargs)))
        counts = any(self.flow.is_data(tensor) for tensor in read)
        rule = RULES.get(name.strip("_"))
        if counts and rule is None:
            raise self.refusal(name)
        out = func(*args, **kwargs)
        if name.startswith("conv"):
            out = out.contiguous()  # channels_last is a layout, no permutation
        found = []
        if counts and rule is not None:
            try:
                bound = signature(rule).bind(self, out, *args, **kwargs)
            except TypeError as error:
                raise self.refusal(f"{name} with such arguments") from error
            found = rule(*bound.args, **bound.kwargs)
        written = list(tensors(args[0] if name == "__setitem__" else out))
        start = len(self.operations)
        self.flow.note(read, written, range(start, start + len(found)))
        self.operations += found
        return out

    def refusal(self, what: str) -> InputError:
        """Return the error for a function without a price: its name and where it is called."""
        path = self.running[-1]
        kind = type(self.modules[path]).__name__
        where = f"{path} ({kind})" if path else kind
        return InputError(f"the counter has no price for {what}, called in {where}")

    def operation(
        self, kind: Kind, out: Tensor, constant: Tensor | None = None, **fields: Any
    ) -> Operation:
        """Return an operation of the running module, or of the module that owns its constant."""
        running, owner = self.running[-1], self.flow.owner(constant)
        if constant is not None:
            index = len(self.operations)
            first = self.flow.stored_by(constant, index)
            self._uses.setdefault(first, []).append(index)
            fields["weight_shape"] = tuple(constant.shape) or (1,)
            fields["nonzeros"] = int(constant.count_nonzero())
            fields["shared"] = first != index
        for key in SAID:
            modules = [self.modules[path] for path in (owner, running) if path is not None]
            said = [getattr(module, key, None) for module in modules]
            fields[key] = next((bits for bits in said if bits is not None), None)
        name = ".".join(part for part in (running, kind) if part)
        shape = out.shape[1:] if out.shape[:1] == (1,) else out.shape
        is_layer = kind in ("conv", "linear")
        return Operation(owner if is_layer and owner else name, kind, tuple(shape), **fields)

    def dot(
        self, kind: Kind, out: Tensor, x: Tensor, weight: Tensor, bias: Any, fan_in: int
    ) -> Operation:
        """Return dot products over `fan_in` inputs with weights, or with data, plus a bias."""
        fields: dict[str, Any] = {"fan_in": fan_in}
        fields["is_first"] = storage(x) == storage(self.flow.image)
        if bias is not None:
            index = len(self.operations)
            stored = not self.flow.is_data(bias) and self.flow.stored_by(bias, index) == index
            fields["bias"] = bias.numel()
            fields["bias_nonzeros"] = int(bias.count_nonzero())
            fields["bias_shared"] = not stored
        if self.flow.is_data(weight):
            return self.operation("matmul", out, **fields)
        fields["out_chs"] = weight.numel() // fan_in
        fields["most_nonzeros"] = int(weight.reshape(-1, fan_in).count_nonzero(1).max())
        return self.operation(kind, out, weight, **fields)

    def norm(self, out: Tensor, x: Tensor, running_mean: Tensor) -> Operation:
        """Return a batch norm: a factor and a shift per channel, unless a layer can carry them."""
        layer = self.flow.made_by.get(storage(x))
        self._norms[len(self.operations)] = _Norm(layer, storage(x), storage(running_mean))
        shape = (2, running_mean.numel())
        return self.operation("batch_norm", out, weight_shape=shape, nonzeros=prod(shape))

    def finish(self, outputs: list[Tensor], exits: list[Tensor]) -> tuple[Operation, ...]:
        """Return the operations with batch norms merged, each with the first exit that needs it."""
        for tensor in outputs:
            if not self.flow.is_data(tensor):
                raise InputError("the counter lost track: an output does not depend on the image")
            self.flow.readers[storage(tensor)] += 1
        merged = self._merged_norms()
        needs = [self.flow.needs[storage(logits)] for logits in exits]
        operations, stored = [], set()
        for index, operation in enumerate(self.operations):
            if index in merged.values():
                continue
            if index in self._norms:
                key = self._norms[index].key
                operation = replace(operation, shared=key in stored)
                stored.add(key)
            if index in merged and not operation.bias:
                operation = replace(
                    operation, folded_bias=operation.out_chs, bias_shared=operation.shared
                )
            first = next((k for k, needed in enumerate(needs) if index in needed), 0)
            operations.append(replace(operation, exit=first))
        return tuple(operations)

    def _merged_norms(self) -> dict[int, int]:
        """Return layer -> batch norm for the norms that a layer's weights can carry.

        Nothing else may read the layer's output. If a layer runs more than once, the same norm must
        follow each time.
        """
        follows = {
            norm.layer: index
            for index, norm in self._norms.items()
            if norm.layer is not None and self.flow.readers[norm.input] == 1
        }
        merged: dict[int, int] = {}
        for layers in self._uses.values():
            if self.operations[layers[0]].kind not in ("conv", "linear"):
                continue
            norms = [follows.get(layer) for layer in layers]
            if len({None if norm is None else self._norms[norm].key for norm in norms}) == 1:
                merged |= {a: b for a, b in zip(layers, norms, strict=True) if b is not None}
        return merged


@contextmanager
def _module_path(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Track the dotted path of the running module on the stack."""
    handles = []

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_operations(
    model: nn.Module, input_shape: tuple[int, ...] = (3, 32, 32)
) -> tuple[Operation, ...]:
    """Return every operation of one image's forward pass in evaluation mode, in execution order.

    A tensor that depends on parameters and buffers only is a weight, so masks, scales and fake
    quantisation of weights are free. Zeros are counted in the tensor that reaches the data. That
    tensor is stored, not the parameters behind it, and only with the first operation that reads it.
    A parameter that no operation reads is not stored.

    A module with quantised layers sets attributes of `SAID`, such as `weight_bits`. They hold for
    operations with its parameters and in its `forward`. Of a network that returns another one as
    `counted`, the operations of that one are returned.

    A network with several exits is run by its method `exits`. An operation that no exit needs
    counts for the first. The decision to leave is not counted.

    Mode and device of the network do not change. `input_shape` is `(C, H, W)`.

    Raises:
        InputError: a function without a rule, or scripted code.
    """
    if isinstance(model, Network):
        model = model.counted()
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(f"{type(model).__name__} is scripted: the counter cannot look inside")
    values = chain(model.parameters(), model.buffers())
    like = next((each for each in values if each.is_floating_point()), torch.zeros(()))
    image = torch.zeros((1, *input_shape), dtype=like.dtype, device=like.device)
    recorder = Recorder(model, image)
    with evaluated(model), torch.no_grad(), _module_path(model, recorder.running), recorder:
        exits = model.exits(image) if isinstance(model, Network) else []
        outputs = exits or list(tensors(model(image)))
    return recorder.finish(outputs, exits)
