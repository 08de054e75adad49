"""Free savings: remove from a pruned network what no logit depends on.

Each function returns a smaller network with the same logits (chapter `06_scoring` checks it on 10
000 images). There are three kinds of waste, from large to small:
- squeeze-and-excitation whose result is dropped, a slip in the released code of [kim2020];
- channels that pruning has cut off: nothing reads them, or they are constant. A constant is folded
  into the next batch norm or bias;
- HardSwish's division by six, a linear factor that the next convolution can carry.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import check_plain_weights
from micronet_lib.architecture.micronet import Architecture, MBConv, MicroNet, SqueezeExcite
from micronet_lib.errors import InputError, check_choice


def remove_dead_gates(model: MicroNet) -> MicroNet:
    """Remove squeeze-and-excitation that is not applied. The logits are bit-identical.

    Raises:
        InputError: a weight is computed from other tensors.
    """
    check_plain_weights(model)
    if model.architecture.downsample_se != "dead":
        return copy.deepcopy(model)
    weights = model.state_dict()
    cut = tuple(b if b.se_applied else replace(b, se_chs=0) for b in model.architecture.cut_blocks)
    architecture = replace(model.architecture, downsample_se="none", cut_blocks=cut)
    trimmed = _build_like(model, architecture)
    trimmed.load_state_dict({name: weights[name] for name in trimmed.state_dict()})
    return trimmed


def _build_like(model: MicroNet, architecture: Architecture) -> MicroNet:
    """Return a new network of that architecture with the model's device, precision and mode."""
    parameter = next(model.parameters())
    return MicroNet(architecture).to(parameter.device, parameter.dtype).train(model.training)


@dataclass
class _Live:
    """Boolean masks of the channels that some logit depends on.

    `streams[i]` are channels tied together by identity shortcuts. Block `b` reads
    `streams[reads[b]]` and writes `streams[writes[b]]`.
    """

    streams: list[Tensor]
    reads: list[int]
    writes: list[int]
    hidden: list[Tensor]
    se: list[Tensor]

    @classmethod
    def everything(cls, model: MicroNet) -> "_Live":
        streams = [_ones(model.stem.conv.out_channels)]
        reads, writes, hidden, se = [], [], [], []
        for block in _blocks(model):
            reads.append(len(streams) - 1)
            if block.config.stride == 2 or block.config.pointwise_shortcut:
                streams.append(_ones(block.config.out_chs))
            writes.append(len(streams) - 1)
            hidden.append(_ones(block.config.hidden_chs))
            se.append(_ones(block.config.se_chs))
        return cls(streams, reads, writes, hidden, se)

    def count(self) -> int:
        return sum(int(mask.sum()) for mask in (*self.streams, *self.hidden, *self.se))


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def _blocks(model: MicroNet) -> list[MBConv]:
    return [block for block in model.blocks if isinstance(block, MBConv)]


def _used(conv: nn.Conv2d | nn.Linear, rows: Tensor, cols: Tensor) -> Tensor:
    """Return bool `[out_chs, in_chs]`: non-zero weights in a live row and a live column."""
    weight = conv.weight.detach().cpu()
    nonzero = (weight.flatten(2) != 0).any(2) if weight.ndim == 4 else weight != 0
    return nonzero & rows[:, None] & cols[None, :]


def _sweep(model: MicroNet, live: _Live) -> None:
    """Mark channels as dead, given the channels that are dead already."""
    read = [torch.zeros_like(stream) for stream in live.streams]
    classifier = model.classifier
    read[-1] |= _used(classifier, _ones(classifier.out_features), live.streams[-1]).any(0)
    for index, block in enumerate(_blocks(model)):
        inputs, outputs = live.streams[live.reads[index]], live.streams[live.writes[index]]
        hidden, se = live.hidden[index], live.se[index]
        expand = _used(block.conv_expand, hidden, inputs)
        taps = (block.conv_dw.weight.detach().cpu().flatten(1) != 0).any(1)
        # A hidden channel without input is constant. Zero padding changes a constant plane at its
        # border, so only a constant of exactly zero can be removed.
        silent = ~expand.any(1) & (block.act_expand(_at_zero(block.bn_expand)).cpu() == 0)
        project = _used(block.conv_project, outputs, hidden)
        live.hidden[index] = hidden & taps & ~silent & project.any(0)
        read[live.reads[index]] |= _used(block.conv_expand, live.hidden[index], inputs).any(0)
        if block.conv_shortcut is not None:
            read[live.reads[index]] |= _used(block.conv_shortcut, outputs, inputs).any(0)
        if block.se is not None:
            reduce = _used(block.se.conv_reduce, se, outputs)
            live.se[index] = se & reduce.any(1) & _used(block.se.conv_expand, outputs, se).any(0)
            read[live.writes[index]] |= reduce[live.se[index]].any(0)
    live.streams = [_at_least_one(s & r) for s, r in zip(live.streams, read, strict=True)]
    live.hidden = [_at_least_one(mask) for mask in live.hidden]
    live.se = [_at_least_one(mask) if len(mask) else mask for mask in live.se]


def _at_least_one(mask: Tensor) -> Tensor:
    return mask if mask.any() else torch.arange(len(mask)) == 0


@torch.no_grad()
def _at_zero(bn: nn.BatchNorm2d) -> Tensor:
    """Return a batch norm's outputs `[C]` for channels that are zero everywhere."""
    zero = torch.zeros(1, bn.num_features, 1, 1).to(bn.weight)
    return bn(zero).flatten()


@torch.no_grad()
def _fold_constants(block: MBConv, hidden: Tensor, se: Tensor) -> None:
    """Move the constant contribution of dead channels into the next batch norm or bias."""
    # A dead hidden channel is either constant or multiplied by zero weights: both add up right.
    constants = block.act_dw(_at_zero(block.bn_dw)) * ~hidden.to(block.conv_dw.weight.device)
    assert block.bn_project.running_mean is not None
    block.bn_project.running_mean -= block.conv_project.weight.flatten(1) @ constants
    if block.se is not None and isinstance(block.se.conv_reduce.bias, Tensor):
        dead = ~se.to(block.se.conv_reduce.weight.device)
        values = block.se.act(block.se.conv_reduce.bias) * dead
        assert block.se.conv_expand.bias is not None
        block.se.conv_expand.bias += block.se.conv_expand.weight.flatten(1) @ values


def remove_dead_channels(model: MicroNet) -> MicroNet:
    """Remove every channel that no logit depends on, and fold the constant ones.

    This covers hidden channels, squeeze-and-excitation units and the channels between blocks. Dead
    pooled channels and constant gates stay, because selecting single channels would need an index,
    which the organisers charge. Logits agree up to rounding (the order of the sums changes).

    Raises:
        InputError: the network has dead gates; remove those first. Or a weight is computed from
            other tensors.
    """
    check_plain_weights(model)
    if any(block.config.se_chs and not block.config.se_applied for block in _blocks(model)):
        raise InputError("the network carries dead gates; call remove_dead_gates first")
    source = copy.deepcopy(model).eval()
    live, before = _Live.everything(source), -1
    while live.count() != before:
        before = live.count()
        _sweep(source, live)
    for block, hidden, se in zip(_blocks(source), live.hidden, live.se, strict=True):
        _fold_constants(block, hidden, se)
    configs = tuple(
        replace(
            block.config,
            in_chs=int(live.streams[live.reads[i]].sum()),
            hidden_chs=int(live.hidden[i].sum()),
            out_chs=int(live.streams[live.writes[i]].sum()),
            se_chs=int(live.se[i].sum()),
        )
        for i, block in enumerate(_blocks(source))
    )
    stem_chs = int(live.streams[0].sum())
    architecture = replace(
        model.architecture, stem_chs=stem_chs, width_mult=1.0, cut_blocks=configs
    )
    trimmed = _build_like(model, architecture)
    trimmed.load_state_dict(_cut(source, live))
    return trimmed


def _cut(model: MicroNet, live: _Live) -> dict[str, Tensor]:
    """Return the state dictionary without dead rows and columns."""
    every = slice(None)
    cuts: dict[str, tuple[Any, Any]] = {
        "stem.conv": (live.streams[0], every),
        "stem.bn": (live.streams[0], every),
        "head.classifier": (every, live.streams[-1]),
    }
    for i, (hidden, se) in enumerate(zip(live.hidden, live.se, strict=True)):
        inputs, outputs = live.streams[live.reads[i]], live.streams[live.writes[i]]
        parts = {
            "conv_expand": (hidden, inputs),
            "bn_expand": (hidden, every),
            "conv_dw": (hidden, every),
            "bn_dw": (hidden, every),
            "conv_project": (outputs, hidden),
            "bn_project": (outputs, every),
            "conv_shortcut": (outputs, inputs),
            "bn_shortcut": (outputs, every),
            "se.conv_reduce": (se, outputs),
            "se.conv_expand": (outputs, se),
        }
        cuts |= {f"blocks.{i}.{part}": cut for part, cut in parts.items()}
    state = {}
    for name, value in model.state_dict().items():
        rows, cols = cuts[name.rpartition(".")[0]]
        if value.ndim >= 1:
            value = value[rows]
        if value.ndim >= 2:
            value = value[:, cols]
        state[name] = value
    return state


@torch.no_grad()
def fold_sixth(model: MicroNet) -> MicroNet:
    """Move the division by six of each HardSwish into the next convolution, if it is not there yet.

    An activation then costs three multiplications instead of four. Logits agree up to rounding.

    Raises:
        InputError: the stem feeds an identity shortcut, which has no weight for the factor. Or a
            weight is computed from other tensors.
    """
    check_plain_weights(model)
    if model.architecture.activation == "hard_swish_x6":
        return copy.deepcopy(model)
    blocks = _blocks(model)
    if blocks[0].config.stride == 1 and not blocks[0].config.pointwise_shortcut:
        raise InputError("the stem feeds an identity shortcut; its activation cannot be folded")
    architecture = replace(
        model.architecture,
        activation="hard_swish_x6",
        cut_blocks=tuple(replace(b.config, activation="hard_swish_x6") for b in blocks),
    )
    folded = _build_like(model, architecture)
    folded.load_state_dict(model.state_dict())
    first = _blocks(folded)[0]
    first.conv_expand.weight /= 6
    if first.conv_shortcut is not None:
        first.conv_shortcut.weight /= 6
    for block in _blocks(folded):
        block.conv_dw.weight /= 6
        block.conv_project.weight /= 6
        if isinstance(block.se, SqueezeExcite):
            block.se.conv_expand.weight /= 6
    return folded


SAVINGS = {
    "dead_gates": remove_dead_gates,
    "dead_channels": remove_dead_channels,
    "sixth": fold_sixth,
}
"""The free savings by name, in the order in which they can be applied."""


def apply_savings(model: nn.Module, names: Sequence[str]) -> MicroNet:
    """Apply free savings one after the other.

    Raises:
        InputError: a name that is not in `SAVINGS`, or a network that is no MicroNet.
    """
    if not isinstance(model, MicroNet):
        raise InputError(f"free savings are known for MicroNets only, not {type(model).__name__}")
    for name in names:
        check_choice("saving", name, SAVINGS)
        model = SAVINGS[name](model)
    return model
