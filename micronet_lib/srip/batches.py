"""SRIP in closed form: value and gradient of a step from a few batches of padded matrices.

`srip.penalty` defines SRIP; its autograd needs dozens of small products in each direction. Here all
matrices go through one power step together, and the gradient is written out.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook
from micronet_lib.srip.penalty import SripConfig, as_matrix, draw_start, srip_weights


class Srip(Hook):
    """`srip_network_penalty` for a training loop: same value and gradient, without autograd.

    Matrices of similar size are padded with zeros into one batch. A start vector that is 0 in the
    padding stays 0 there, so the result is the same. With `a = A u, b = A a, c = A b` and `r = c -
    sigma^2 a`, the gradient of `sigma^2 = |b|^2 / |a|^2` by M has rank 4,

        2 / |a|^2 * [(M a) b' + (M b) a' + (M u) r' + (M r) u'],

    and that of sigma has the factor `1 / (|a| |b|)` instead. Shapes are fixed and nothing waits for
    the device. A CUDA graph can capture a call if it knows the generator
    (`CUDAGraph.register_generator_state`) and every `.grad` exists and stays at its address.

    Args:
        model: on its device.
        config: placement, definition, start and coefficient.
        generator: draws the first vectors of `start="warm"`; otherwise not used.
        few_launches: use two batches and copy by index, for devices where a launch costs more than
            padding; by default on CUDA only.

    Raises:
        InputError: no layer at the placement, or a generator on another device.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SripConfig,
        generator: torch.Generator | None = None,
        few_launches: bool | None = None,
    ) -> None:
        self.config = config
        self.weights = srip_weights(model, config.placement)
        matrices = [
            as_matrix(weight.detach(), config.definition) for weight in self.weights.values()
        ]
        shapes = [(len(matrix), matrix.shape[1]) for matrix in matrices]
        few_launches = matrices[0].is_cuda if few_launches is None else few_launches
        groups: dict[object, list[int]] = {}
        for i, (rows, columns) in enumerate(shapes):
            powers = tuple((size - 1).bit_length() // 2 for size in (rows, columns))  # 8, 32, 128
            groups.setdefault(rows < columns if few_launches else powers, []).append(i)
        self._matrices = _Padded(shapes, groups.values(), matrices[0])
        self._gradients = _Padded(shapes, groups.values(), matrices[0])
        self._starts = _Padded([(1, size) for _, size in shapes], groups.values(), matrices[0])
        self._u = matrices[0].new_empty(sum(size for _, size in shapes))
        self._u_index = self._starts.places(self._starts.slots)
        self._slots = self._like_weights(self._matrices)
        self._gradient_slots = self._like_weights(self._gradients)
        self._index = self._matrices.places(self._slots) if few_launches else None
        if config.start == "warm":
            self._draw_starts(generator)

    def _like_weights(self, padded: "_Padded") -> list[Tensor]:
        """Return views of the padded matrices in the shapes of the weights."""
        transposed = self.config.definition == "paper"
        return [
            (slot.mT if transposed else slot).view(weight.shape)
            for slot, weight in zip(padded.slots, self.weights.values(), strict=True)
        ]

    @torch.no_grad()
    def value_and_grad(self, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss term, 0-d. Add its gradient to every weight's `.grad` in place.

        Args:
            generator: for `start="fresh"`: its next N(0, 1) numbers are the start vectors.

        Raises:
            InputError: the generator is on another device.
        """
        if self.config.coef == 0:
            return self._u.new_zeros(())
        with torch.autocast(self._u.device.type, enabled=False):
            self._read_weights()
            if self.config.start == "fresh":
                self._draw_starts(generator)
            batches = (self._matrices.batches, self._starts.batches, self._gradients.batches)
            total = sum(map(self._step, *batches), self._u.new_zeros(()))
            self._add_gradients()
        return total * (self.config.coef / len(self.weights))

    def after_backward(self, generator: torch.Generator | None) -> Tensor:
        """Add the gradient; see `value_and_grad`."""
        return self.value_and_grad(generator)

    def _step(self, m: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
        """Write the gradient, shaped as m `[n, rows, columns]`; return the sum of the penalties.

        u is `[n, 1, columns]`: vectors are rows, as columns are several times slower on a CPU.
        """
        released = self.config.definition == "released"
        m_u = u @ m.mT
        a = torch.baddbmm(u, m_u, m, beta=-1)
        m_a = a @ m.mT
        b = torch.baddbmm(a, m_a, m, beta=-1)
        m_b = b @ m.mT
        c = torch.baddbmm(b, m_b, m, beta=-1)
        norm_a = torch.linalg.vector_norm(a, dim=2, keepdim=True)
        norm_b = torch.linalg.vector_norm(b, dim=2, keepdim=True)
        tiny = torch.finfo(u.dtype).tiny
        sigma = norm_b / norm_a.clamp_min(tiny)
        square = sigma.square()
        r = torch.addcmul(c, square, a, value=-1)
        m_r = torch.addcmul(c @ m.mT, square, m_a, value=-1)
        factor = self.config.coef / len(self.weights) * (2 if released else 1)
        slope = (norm_a * (norm_a if released else norm_b)).clamp_min(tiny)
        left = torch.cat([m_a, m_b, m_u, m_r], 1).mul_(factor).div_(slope)
        torch.bmm(left.mT, torch.cat([b, a, r, u], 1), out=gradient)
        if self.config.start == "warm":
            u.copy_(torch.where(norm_b > tiny, b / norm_b, u))
        return (square if released else sigma).sum()

    def _read_weights(self) -> None:
        weights = [weight.detach() for weight in self.weights.values()]
        if self._index is None:
            torch._foreach_copy_(self._slots, weights)
        else:
            flat = torch.cat([weight.flatten() for weight in weights]).to(self._u.dtype)
            self._matrices.storage.index_copy_(0, self._index, flat)

    def _add_gradients(self) -> None:
        grads, parts = [], self._gradient_slots
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            grads.append(weight.grad)
        if self._index is not None:
            flat = self._gradients.storage.index_select(0, self._index)
            pieces = zip(flat.split([grad.numel() for grad in grads]), grads, strict=True)
            parts = [piece.view_as(grad) for piece, grad in pieces]
        torch._foreach_add_(grads, parts)

    def _draw_starts(self, generator: torch.Generator | None) -> None:
        self._starts.storage.index_copy_(0, self._u_index, draw_start(self._u, generator))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the start vectors of `warm`; nothing for `fresh`."""
        if self.config.start == "fresh":
            return {}
        return {"u": self._starts.storage[self._u_index]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the start vectors of another run.

        Raises:
            InputError: they are of another length than for these weights, or of another start.
        """
        own, given = ({k: len(v) for k, v in d.items()} for d in (self.state_dict(), state))
        if own != given:
            raise InputError(f"SRIP state {given} of other settings; {self.config} has {own}")
        for vectors in state.values():
            self._starts.storage.index_copy_(0, self._u_index, vectors.to(self._u))


class _Padded:
    """Matrices of many sizes as a few batches, padded with zeros. `slots[i]` is the i-th matrix."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], groups: Collection[list[int]], like: Tensor
    ) -> None:
        sizes = [
            (len(group), max(shapes[i][0] for i in group), max(shapes[i][1] for i in group))
            for group in groups
        ]
        self.storage = like.new_zeros(sum(map(math.prod, sizes)))
        parts = self.storage.split([math.prod(size) for size in sizes])
        self.batches = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
        slots = {
            i: matrix[: shapes[i][0], : shapes[i][1]]
            for group, batch in zip(groups, self.batches, strict=True)
            for i, matrix in zip(group, batch, strict=True)
        }
        self.slots = [slots[i] for i in range(len(shapes))]

    def places(self, slots: Sequence[Tensor]) -> Tensor:
        """Return the positions in the storage of all elements of the given views, in order."""
        every = torch.arange(len(self.storage), device=self.storage.device)
        views = [every.as_strided(s.shape, s.stride(), s.storage_offset()) for s in slots]
        return torch.cat([view.flatten() for view in views])
