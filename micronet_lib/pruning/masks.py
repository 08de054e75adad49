"""Global magnitude pruning: set the smallest weights of a network to zero and hold them there.

The fourth stage of [kim2020, section 5], after [han2015] and [frankle2018] (chapter `05_pruning`).
The weights of convolutions and linear layers are pruned, squeeze-and-excitation included. Biases,
batch norm, layer scales, class tokens and position embeddings are not. A mask is a boolean tensor
of its weight's shape, true where the weight is stored. `schedules` says how much each round prunes,
`density` where the zeros are.

Differences from the released code [micronet_code]:
- The code keeps weights above a percentile, so equal magnitudes are pruned together and the
  sparsity may be missed. Here the count is exact. Of equal magnitudes, the first in network order
  are pruned first.
- The code masks weights in the forward pass, so they are not zero between an optimiser step and the
  next forward pass. `HeldMasks` masks them right after the step. Training is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import layer_weights, weight_kinds, weight_parameters
from micronet_lib.errors import InputError, check_choice
from micronet_lib.hooks import Hook

Scope = Literal["global", "kind", "layer"]
Masks = dict[str, Tensor]


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every convolution and linear layer by name, see `layer_weights`.

    Raises:
        InputError: the network has none.
    """
    weights = layer_weights(model)
    if not weights:
        raise InputError("this network has no convolution and no linear layer to prune")
    return weights


def weight_groups(model: nn.Module, scope: Scope) -> dict[str, str]:
    """Return the threshold group of every prunable weight.

    Args:
        model: any network.
        scope: `global`, one threshold for all weights, as published; `kind`, one for each kind of
            layer; `layer`, one for each weight.

    Raises:
        InputError: unknown scope, or nothing to prune.
    """
    check_choice("pruning scope", scope, get_args(Scope))
    weights = prunable_weights(model)
    if scope == "kind":
        return weight_kinds(model)
    return {name: name if scope == "layer" else "all" for name in weights}


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    before: Mapping[str, Tensor] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Masks:
    """Return masks that prune exactly the `round(sparsity * n)` smallest of a group's n weights.

    The threshold is selected on the device, and the host waits for it once. The result does not
    depend on memory format or device.

    Args:
        weights: of any shapes, all on one device.
        sparsity: fraction of pruned weights, those of `before` included; in [0, 1]. A fraction near
            1 can round to all weights.
        before: masks of the last round. Their pruned weights stay pruned, whatever their value.
        groups: from `weight_groups`; by default one group.

    Returns:
        A boolean tensor for each weight, of its shape and on its device, true where it is stored.

    Raises:
        InputError: sparsity outside [0, 1] or below that of `before`; NaN or infinite weights;
            masks or groups of other weights.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity {sparsity} is not in [0, 1]; it is a fraction, not per cent")
    if not weights:
        raise InputError("no weights to prune")
    if before is not None:
        _check_same_weights(weights, before)
    groups = dict.fromkeys(weights, "all") if groups is None else groups
    if groups.keys() != weights.keys():
        raise InputError("the groups are of other weights; make them with weight_groups(model)")
    members: dict[str, list[str]] = {}
    for name in weights:
        members.setdefault(groups[name], []).append(name)
    flat = {group: _magnitudes(weights, names) for group, names in members.items()}
    gone = {group: _gone(before, names) for group, names in members.items()} if before else {}
    counts = {group: round(sparsity * len(sizes)) for group, sizes in flat.items()}
    _check_values(weights, flat, gone, counts)
    masks: Masks = {}
    for group, names in members.items():
        scores = flat[group].masked_fill(gone[group], -1) if gone else flat[group]
        kept = _keep_all_but(scores, counts[group])
        pieces = kept.split([weights[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            masks[name] = piece.view(weights[name].shape)
    return {name: masks[name] for name in weights}


def _magnitudes(weights: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    flat = torch.cat([weights[name].detach().flatten() for name in names]).abs()
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def _gone(masks: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return where the masks prune, `[n]`."""
    return torch.cat([masks[name].flatten() == 0 for name in names])


def _check_values(
    weights: Mapping[str, Tensor],
    flat: Mapping[str, Tensor],
    gone: Mapping[str, Tensor],
    counts: Mapping[str, int],
) -> None:
    """Check everything that depends on values. Only this function waits for the device."""
    largest = torch.stack([sizes.amax() for sizes in flat.values()]).isfinite().all().long()
    found = torch.stack([largest, *(each.sum() for each in gone.values())]).tolist()
    if not found[0]:
        name = next(name for name, weight in weights.items() if not weight.isfinite().all())
        raise InputError(f"{name} holds NaN or infinite weights, whose order means nothing")
    for group, already in zip(gone, found[1:], strict=True):
        if already > counts[group]:
            raise InputError(
                f"{already} of {len(gone[group])} weights ({group}) are pruned already, more "
                f"than the {counts[group]} asked for; a later round cannot prune less"
            )


def _keep_all_but(scores: Tensor, count: int) -> Tensor:
    """Return false for the `count` smallest of `[n]` scores; of equal scores, the first ones."""
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # topk's values are the same everywhere; which of several equals its indices name is not.
    left = len(scores) - count
    if count <= left:
        threshold = scores.topk(count, largest=False, sorted=False).values.amax()
    else:  # the same number from the other side, which has fewer to select
        threshold = scores.topk(left + 1, sorted=False).values.amin()
    smaller, equal = scores < threshold, scores == threshold
    room = count - smaller.sum()
    return ~(smaller | (equal & (equal.cumsum(0) <= room)))


def _check_same_weights(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    if masks.keys() != weights.keys():
        name = min(masks.keys() ^ weights.keys())
        raise InputError(f"masks of another network: {name} is in one of the two only")
    for name, weight in weights.items():
        if masks[name].shape != weight.shape:
            raise InputError(
                f"masks of another network: {name} is {list(weight.shape)}, its mask "
                f"{list(masks[name].shape)}"
            )


def current_masks(model: nn.Module) -> Masks:
    """Return the masks of a pruned network: false where a prunable weight is exactly 0."""
    return {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a network to 0, once and in place.

    An optimiser step makes them non-zero again; see `HeldMasks`.

    Args:
        model: the network, or a copy such as an average of its weights.
        masks: one for each prunable weight, of its shape, 0 or false where it is pruned.

    Raises:
        InputError: the masks belong to another network; or a weight is computed from tensors that
            no mask can hold at 0.
    """
    HeldMasks(model, masks)


class HeldMasks(Hook):
    """Keep pruned weights at 0 during training: they are 0 after every step.

    Momentum and the gradient of a pruned weight would change it in the next step. So the loop calls

        loss.backward(); masks.before_step(optimizer); optimizer.step(); masks.after_step()

    Masks are constant tensors of the weights' type, all ones at first; `set` writes into them.
    Shapes are fixed and nothing waits for the device. So one captured CUDA graph serves dense
    training and all rounds, if gradients and momentum stay at their addresses.

    By default gradients and momentum are not masked, as in the released code. With SGD, or any
    optimiser that treats weights separately, the stored weights are the same to the last bit. Set
    `mask_updates` if a norm over gradients counts (clipping, LARS, LAMB), or if masks restore
    weights.

    A weight under `torch.nn.utils.prune` or a parametrization is held by the parameter behind it.

    Args:
        model: on its device and in its memory format. Its pruned weights are set to 0 at once.
        masks: from `magnitude_masks`, or of another network of the same shapes; None prunes
            nothing.
        mask_updates: also mask gradients and momentum, so that the update of a pruned weight is 0.

    Raises:
        InputError: the masks belong to another network; or a weight is computed from tensors that
            no mask can hold at 0.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        mask_updates: bool = False,
    ) -> None:
        self.mask_updates = mask_updates
        self._model = model
        self._weights = weight_parameters(model)
        self._masks = {
            name: torch.ones_like(weight, requires_grad=False)
            for name, weight in self._weights.items()
        }
        if masks is not None:
            self.set(masks)

    @property
    def masks(self) -> Masks:
        """Boolean copies of the masks, true where a weight is stored."""
        return {name: mask != 0 for name, mask in self._masks.items()}

    @torch.no_grad()
    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks in place, and set the weights that they prune to 0.

        Raises:
            InputError: the masks belong to another network.
        """
        _check_same_weights(self._weights, masks)
        for name, mask in self._masks.items():
            mask.copy_(masks[name] != 0)
        self.after_step()
        for name, weight in prunable_weights(self._model).items():
            if weight is not self._weights[name] and weight[self._masks[name] == 0].any():
                raise InputError(
                    f"{name} is computed from a parameter, and is not 0 where that is: a mask "
                    "cannot hold it"
                )

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Mask gradients and momentum if `mask_updates` is set.

        Args:
            optimizer: of these weights. Every state tensor of a weight's shape is masked.
        """
        if not self.mask_updates:
            return
        updates, masks = [], []
        for name, weight in self._weights.items():
            kept = [weight.grad, *optimizer.state.get(weight, {}).values()]
            found = [each for each in kept if isinstance(each, Tensor)]
            of_its_shape = [each for each in found if each.shape == weight.shape]
            updates += of_its_shape
            masks += [self._masks[name]] * len(of_its_shape)
        if updates:
            torch._foreach_mul_(updates, masks)

    @torch.no_grad()
    def after_step(self) -> None:
        """Set pruned weights to 0 again."""
        torch._foreach_mul_(list(self._weights.values()), list(self._masks.values()))

    def state_dict(self) -> Masks:
        """Return the masks."""
        return self.masks

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict`. Raises InputError if it belongs to another network."""
        self.set(state)
