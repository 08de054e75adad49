"""Which tensors of a forward pass depend on the image, and which on parameters only.

The first are data; arithmetic on them is the cost of a network. The others are constants, which can
be computed before the first image, so arithmetic on them is free.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def storage(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, which it shares with its views."""
    return tensor.untyped_storage().data_ptr()


class Dataflow:
    """Dependencies of every tensor, identified by its memory, because a view is no new value.

    Attributes:
        needs: for data, indices of the operations that led to it.
        sources: for a constant, names of the parameters and buffers that it derives from.
        made_by: for data, index of the operation that wrote it last.
        readers: number of functions that read a piece of memory.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.image = image
        self.needs: dict[int, frozenset[int]] = {storage(image): frozenset()}
        self.sources: dict[int, frozenset[str]] = {}
        self.made_by: dict[int, int] = {}
        self.readers: Counter[int] = Counter()
        self._sizes: dict[str, int] = {}
        self._stored: dict[Any, list[tuple[int, Tensor]]] = {}
        # While a tensor lives, its address names nothing else.
        self._alive: list[Tensor] = []
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            self._sizes[name] = tensor.numel()
            at = storage(tensor)
            self.sources[at] = self.sources.get(at, frozenset()) | {name}

    def is_data(self, tensor: Tensor) -> bool:
        """Return whether a tensor depends on the image."""
        return storage(tensor) in self.needs

    def note(self, read: list[Tensor], written: list[Tensor], operations: range) -> None:
        """Record the dependencies of a function's outputs, and of arguments that it changed.

        `operations` are the indices of its operations; empty if it is free.
        """
        data = {storage(tensor) for tensor in read if self.is_data(tensor)}
        if written:
            self.readers.update(data)
        needs = frozenset(operations).union(*(self.needs[at] for at in data))
        named = (self.sources.get(storage(tensor), frozenset()) for tensor in read)
        sources = frozenset[str]().union(*named)
        for tensor in written:
            if not tensor.numel():
                continue
            self._alive.append(tensor)
            at = storage(tensor)
            if not data:
                self.sources[at] = self.sources.get(at, frozenset()) | sources
                continue
            self.needs[at] = needs
            if operations:
                self.made_by[at] = operations[-1]

    def owner(self, constant: Tensor | None) -> str | None:
        """Return the path of the module that owns a constant's parameter, or None.

        Of several parameters it prefers one of the constant's size, then one named `weight` over a
        scale or mask. Then it prefers the innermost module.
        """
        if constant is None:
            return None
        names = sorted(self.sources.get(storage(constant), ()))
        names = [name for name in names if self._sizes[name] == constant.numel()] or names
        names = [name for name in names if "weight" in name] or names
        paths = [f".{name}".rpartition(".")[0] for name in names]
        paths = [path.partition(".parametrizations.")[0].removeprefix(".") for path in paths]
        return max(paths, key=len, default=None)

    def stored_by(self, constant: Tensor, operation: int) -> int:
        """Return the index of the first operation that needs a constant's values stored.

        Values are the same if they come from the same parameters and are equal in any order. So a
        weight and its transpose are stored once, a weight and a part of it are stored separately.
        New values are stored by `operation` itself.
        """
        at = storage(constant)
        key = (self.sources.get(at) or at, constant.storage_offset(), constant.numel())
        known = self._stored.setdefault(key, [])
        for first, values in known:
            if torch.equal(_sorted(values), _sorted(constant)):
                return first
        known.append((operation, constant))
        return operation


def _sorted(values: Tensor) -> Tensor:
    return values.detach().flatten().sort().values
