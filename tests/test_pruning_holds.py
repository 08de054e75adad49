"""A pruned weight stays 0 through every step of an optimiser; masked once, it does not."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_networks import flat, seeded
from torch import Tensor, nn

from micronet_lib.architecture.micronet import ARCHITECTURES, MicroNet
from micronet_lib.errors import InputError
from micronet_lib.pruning.masks import HeldMasks, apply_masks, magnitude_masks, prunable_weights


def small(dtype: torch.dtype = torch.float32) -> MicroNet:
    torch.manual_seed(0)
    architecture = replace(ARCHITECTURES["micronet_v1"], width_mult=0.25, dropout=0.0)
    return MicroNet(architecture).to(dtype)


def nesterov(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )


def step(model, optimizer, held=None, seed=0, clip=None) -> None:
    generator = seeded(seed)
    images = torch.randn(4, 3, 32, 32, generator=generator).to(next(model.parameters()))
    targets = torch.randint(100, (4,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(images), targets).backward()
    if held:
        held.before_step(optimizer)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    if held:
        held.after_step()


def back(model, masks) -> int:
    """Pruned weights that are not zero."""
    return int((flat(prunable_weights(model))[~flat(masks)] != 0).sum())


def momentum(optimizer, model) -> dict[str, Tensor]:
    weights = prunable_weights(model)
    return {name: optimizer.state[weight]["momentum_buffer"] for name, weight in weights.items()}


@pytest.mark.parametrize("mask_updates", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_comes_back_under_momentum_and_weight_decay(mask_updates, dtype):
    """The optimiser goes on, so it remembers the weights that are pruned only now."""
    model = small(dtype)
    optimizer = nesterov(model)
    held = HeldMasks(model, mask_updates=mask_updates)
    for seed in range(2):
        step(model, optimizer, held, seed)
    assert flat(held.masks).all()
    for sparsity in (0.3, 0.6):
        held.set(magnitude_masks(prunable_weights(model), sparsity, held.masks))
        assert back(model, held.masks) == 0
        kept = flat(prunable_weights(model))[flat(held.masks)]
        for seed in range(3):
            step(model, optimizer, held, seed)
            assert back(model, held.masks) == 0
            remembered = flat(momentum(optimizer, model))[~flat(held.masks)]
            assert remembered.any().item() is not mask_updates
        assert (flat(prunable_weights(model))[flat(held.masks)] != kept).float().mean() > 0.99
        assert (~flat(held.masks)).sum() == round(sparsity * len(flat(held.masks)))


def test_masked_once_the_weights_come_back():
    model = small()
    optimizer = nesterov(model)
    step(model, optimizer)
    masks = magnitude_masks(prunable_weights(model), 0.6)
    apply_masks(model, masks)
    assert back(model, masks) == 0
    step(model, optimizer)
    assert back(model, masks) > 0.9 * (~flat(masks)).sum()


@pytest.mark.parametrize(("clip", "same"), [(None, True), (0.05, False)])
def test_masked_updates_matter_only_where_weights_share_a_norm(clip, same):
    kept, moving = [], []
    for mask_updates in (False, True):
        model = small()
        optimizer = nesterov(model)
        masks = magnitude_masks(prunable_weights(model), 0.6)
        held = HeldMasks(model, masks, mask_updates)
        for seed in range(3):
            step(model, optimizer, held, seed, clip)
        kept.append(flat(dict(model.named_parameters())))
        moving.append(int((flat(momentum(optimizer, model))[~flat(masks)] != 0).sum()))
    assert torch.equal(*kept) is same
    assert moving[0] > 0
    assert moving[1] == 0


def test_masked_in_every_forward_pass_as_released_trains_the_same():
    ours, theirs = small(), small()
    masks = magnitude_masks(prunable_weights(ours), 0.6)
    held, optimizers = HeldMasks(ours, masks), [nesterov(ours), nesterov(theirs)]
    for seed in range(3):
        step(ours, optimizers[0], held, seed)
        apply_masks(theirs, masks)
        step(theirs, optimizers[1], None, seed)
    assert back(theirs, masks) > 0
    apply_masks(theirs, masks)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_masks_go_on_from_a_state():
    model = small()
    saved = HeldMasks(model, magnitude_masks(prunable_weights(model), 0.6)).state_dict()
    resumed = small()
    held = HeldMasks(resumed)
    assert back(resumed, saved) > 0
    held.load_state_dict(saved)
    assert back(resumed, saved) == 0
    assert torch.equal(flat(held.masks), flat(saved))
    with pytest.raises(InputError, match="another network"):
        held.load_state_dict({})


def test_new_masks_are_written_where_the_old_ones_are():
    model = small().to(memory_format=torch.channels_last)
    held = HeldMasks(model)
    places = [mask.data_ptr() for mask in held._masks.values()]
    held.set(magnitude_masks(prunable_weights(model), 0.6))
    assert [mask.data_ptr() for mask in held._masks.values()] == places
    for name, weight in held._weights.items():  # what foreach needs for one kernel
        assert held._masks[name].dtype == weight.dtype
        assert held._masks[name].stride() == weight.stride()


@pytest.mark.parametrize("mask_updates", [False, True])
def test_a_step_reads_no_value_back(mask_updates):
    """On the meta device there are none: whatever waits for the device fails here."""
    model = small().to("meta")
    optimizer = nesterov(model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    held = HeldMasks(model, mask_updates=mask_updates)
    for _ in range(2):
        held.before_step(optimizer)
        optimizer.step()
        held.after_step()
    held.set(held.masks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask_updates", [False, True])
def test_one_cuda_graph_serves_dense_training_and_every_round(mask_updates):
    model = small().cuda().to(memory_format=torch.channels_last)
    optimizer = nesterov(model)
    held = HeldMasks(model, mask_updates=mask_updates)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        held.before_step(optimizer)
        optimizer.step()
        held.after_step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held.before_step(optimizer)
        optimizer.step()
        held.after_step()
    for sparsity in (0.3, 0.6):
        on_gpu = magnitude_masks(prunable_weights(model), sparsity, held.masks)
        on_cpu = magnitude_masks(
            {name: weight.cpu() for name, weight in prunable_weights(model).items()},
            sparsity,
            {name: mask.cpu() for name, mask in held.masks.items()},
        )
        assert torch.equal(flat(on_gpu).cpu(), flat(on_cpu))
        held.set(on_gpu)
        before = flat(prunable_weights(model))
        graph.replay()
        assert back(model, on_gpu) == 0
        assert not torch.equal(flat(prunable_weights(model)), before)
