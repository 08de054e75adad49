"""One optimiser step of the library is the plain one, made faster."""

from dataclasses import replace

import pytest
import torch
from plain_step import PlainStep
from small_networks import seeded, single_thread
from torch import Tensor

from micronet_lib.architecture.initialization import initialize
from micronet_lib.architecture.micronet import MicroNet, get_architecture
from micronet_lib.augmentation.mixing import draw_mix
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.training.evaluation import fold_batch_norm, logits_of
from micronet_lib.lab.training.step import Step, parameter_groups
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.masks import HeldMasks, magnitude_masks, prunable_weights
from micronet_lib.srip.penalty import SripConfig, srip_weights

RECIPE = Recipe(
    train=TrainConfig(epochs=1, dropout=0.0),
    srip=SripConfig(coef=0.7, definition="released"),
    smoothing=SmoothingConfig("released", smoothing=0.3, temperature=1.0),
    augment=AugmentConfig(mix="cutmix"),
)


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def narrow(width_mult: float = 0.25, dropout: float = 0.0) -> MicroNet:
    architecture = get_architecture("c_efficientnet_3.0")
    model = MicroNet(replace(architecture, width_mult=width_mult, dropout=dropout))
    initialize(model, "semi_orthogonal", seeded(0))
    return model.train().to(memory_format=torch.channels_last)


def batch(num: int = 16) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    images = torch.randint(256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(100, (num,), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "loss_within", "parameters_within"),
    [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-12, 1e-11)],
    ids=["float32", "float64"],
)
def test_a_step_equals_the_plain_one(dtype, loss_within, parameters_within):
    """SRIP, label smoothing, CutMix, no bias decay and Nesterov, given the same draws.

    Float32 shows the accuracy of a real step; float64 that what is left there is rounding.
    """
    recipe = replace(RECIPE, train=replace(RECIPE.train, lr=0.05))
    model = narrow().to(dtype)
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    theirs, ours = PlainStep(model, recipe), Step(model, recipe)
    images, targets = batch(64)
    draw = draw_mix("cutmix", len(images), seeded(0))
    weights = srip_weights(model, "pointwise")
    sizes = [weight.shape[1] for weight in weights.values()]
    drawn = torch.randn(sum(sizes), generator=seeded(10), dtype=dtype).split(sizes)
    starts = dict(zip(weights, drawn, strict=True))
    expected = theirs(normalize(images).to(dtype), targets, draw, starts)
    ours(images, targets, draw, recipe.train.lr, seeded(10))
    assert ours.loss.item() == pytest.approx(expected.item(), rel=max(loss_within, 1e-7))
    for (name, mine), other in zip(
        model.named_parameters(), theirs.model.parameters(), strict=True
    ):
        assert (mine - other).abs().max() < parameters_within, name


def test_mixup_blends_what_was_normalised():
    recipe = replace(RECIPE, augment=AugmentConfig(mix="mixup"), srip=SripConfig(coef=0.0))
    step = Step(narrow(), recipe)
    seen = []
    step.model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images, targets = batch()
    draw = draw_mix("mixup", len(images), seeded(3))
    step(images, targets, draw, 0.1)
    pixels = normalize(images)
    expected = draw.lam * pixels + (1 - draw.lam) * pixels[draw.permutation]
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


def test_no_bias_decay_spares_biases_and_batch_norm():
    model = narrow()
    weights, others = parameter_groups(model, 1e-5, decay_all=False)
    assert weights["weight_decay"] == 1e-5
    assert others["weight_decay"] == 0
    spared = {id(p) for p in others["params"]}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert {id(module.weight), id(module.bias)} <= spared
    assert all(p.ndim > 1 for p in weights["params"])
    assert len(weights["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert parameter_groups(model, 1e-5, decay_all=True)[1]["weight_decay"] == 1e-5


@pytest.mark.parametrize("mask_updates", [False, True])
def test_pruned_weights_stay_at_zero(mask_updates):
    model = narrow()
    masks = magnitude_masks(prunable_weights(model), 0.5)
    step = Step(model, RECIPE, masks=HeldMasks(model, masks, mask_updates))
    images, targets = batch()
    for _ in range(2):
        step(images, targets, None, 0.1)
        for name, weight in prunable_weights(model).items():
            assert weight[~masks[name]].count_nonzero() == 0
            assert weight[masks[name]].count_nonzero() > 0


def test_learning_rate_zero_moves_nothing():
    model = narrow()
    before = [p.detach().clone() for p in model.parameters()]
    step = Step(model, RECIPE)
    step(*batch(), None, 0.0)
    assert all(map(torch.equal, before, model.parameters()))


def test_bfloat16_is_near_float32_and_keeps_its_weights():
    losses = []
    for precision in ("fp32", "bf16"):
        recipe = replace(RECIPE, train=replace(RECIPE.train, precision=precision))
        step = Step(narrow(), recipe)
        step(*batch(), None, 0.1, seeded(0))
        losses.append(step.loss.item())
        assert {p.dtype for p in step.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_a_network_trained_in_bfloat16_is_rated_with_its_own_weights():
    """Its strided depthwise layers are special; a folded or averaged copy must not notice."""
    recipe = replace(RECIPE, train=replace(RECIPE.train, precision="bf16"))
    step = Step(narrow(), recipe)
    for _ in range(2):
        step(*batch(), None, 0.1, seeded(0))
    twin = MicroNet(step.model.architecture)
    twin.load_state_dict(step.model.state_dict())
    images, _ = batch()
    found, expected = (logits_of(fold_batch_norm(each), images) for each in (step.model, twin))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("fault", ["loss", "penalty"])
def test_sums_start_at_zero_and_add_up(fault):
    step = Step(narrow(), RECIPE)
    assert getattr(step, fault).item() == 0
    step(*batch(), None, 0.0, seeded(0))
    once = getattr(step, fault).item()
    step(*batch(), None, 0.0, seeded(0))
    assert getattr(step, fault).item() == pytest.approx(2 * once, rel=1e-4)
