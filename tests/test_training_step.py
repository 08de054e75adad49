"""One optimiser step of the library is the plain one, made faster."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread
from torch import Tensor, nn

from micronet_lib.architecture import Network, build, initialize
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.augmentation.mixing import draw_mix
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.training.evaluation import logits_of
from micronet_lib.lab.training.hooks import freeze
from micronet_lib.lab.training.step import Step, make_optimizer, plain_step
from micronet_lib.label_smoothing import (
    PAPER_SMOOTHING,
    RELEASED_DENSE,
    SLIDE,
    SmoothingConfig,
    target_table,
)
from micronet_lib.pruning.masks import HeldMasks, magnitude_masks, prunable_weights
from micronet_lib.srip.penalty import SripConfig

RECIPE = Recipe(
    model="c_efficientnet_3.0",
    train=TrainConfig(epochs=1, dropout=0.0),
    srip=SripConfig(coef=0.7, definition="released"),
    smoothing=RELEASED_DENSE,
    augment=AugmentConfig(mix="cutmix"),
)
QUIET = replace(RECIPE, srip=SripConfig(coef=0.0))


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def narrow(width_mult: float = 0.25, dropout: float = 0.0) -> Network:
    model = build(RECIPE.model, width_mult=width_mult, dropout=dropout)
    initialize(model, "semi_orthogonal", seeded(0))
    return model.train().to(memory_format=torch.channels_last)


def batch(num: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    images = torch.randint(256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(100, (num,), generator=generator)


def trained_with(**settings: object) -> Recipe:
    return replace(QUIET, train=replace(QUIET.train, **settings))


# ------------------------------------------------------------------------- the plain step


CASES = {  # SRIP, smoothing, CutMix, sparsity, width
    "released": (SripConfig(0.7, definition="released"), RELEASED_DENSE, True, 0.0, 1.0),
    "paper, pruned": (SripConfig(1.0), PAPER_SMOOTHING, True, 0.6, 0.5),
    "every matrix, slide": (SripConfig(0.5, "all"), SLIDE, False, 0.3, 0.25),
    "neither": (SripConfig(0.0), SmoothingConfig(), True, 0.0, 0.25),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("dtype", "within", "rel"),
    [(torch.float32, 3e-3, 1e-4), (torch.float64, 1e-10, 1e-6)],
    ids=["32", "64"],
)
def test_steps_are_the_plain_ones(case, dtype, within, rel):
    """Float32 shows the accuracy of real steps; float64 that what is left there is rounding.

    A value at a kink, of an activation or of the norm at an orthogonal matrix, has one of two
    gradients, and rounding chooses. In float32 that was up to 7e-4 on one machine and 1e-6 on
    another, where weights move by some hundredths. Loss and penalty are float32 in both.
    """
    srip, smoothing, mixed, sparsity, width_mult = case
    recipe = replace(RECIPE, srip=srip, smoothing=smoothing)
    ours = narrow(width_mult).to(dtype)
    ours.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    theirs = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    masks = magnitude_masks(prunable_weights(ours), sparsity) if sparsity else None
    step = Step(ours, recipe, hooks=[HeldMasks(ours, masks)] if masks else [])
    if masks:
        HeldMasks(theirs, masks)
    groups = [
        [p for p in theirs.parameters() if (p.ndim > 1) is decayed] for decayed in (True, False)
    ]
    optimizer = torch.optim.SGD(
        [{"params": groups[0], "weight_decay": recipe.train.weight_decay}, {"params": groups[1]}],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
    )
    table = target_table(theirs.classifier.weight, smoothing)
    on_device = [seeded(10), seeded(10)]
    loss = penalty = 0.0
    for seed in range(3):
        images, targets = batch(8, seed)
        draw = draw_mix("cutmix", len(images), seeded(seed)) if mixed else None
        step(images, targets, draw, 0.05, on_device[0])
        config = srip if srip.coef else None
        found = plain_step(
            theirs, optimizer, images, targets, table, draw, config, on_device[1], masks
        )
        loss, penalty = loss + found[0].item(), penalty + found[1].item()
    assert step.loss.item() == pytest.approx(loss, rel=rel)
    assert step.penalty.item() == pytest.approx(penalty, rel=rel)
    for (name, tensor), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert (tensor - other).abs().max() <= within, name


def test_mixup_blends_what_was_normalised():
    step, seen = Step(narrow(), QUIET), []
    step.network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images, targets = batch()
    draw = draw_mix("mixup", len(images), seeded(3))
    step(images, targets, draw, 0.1)
    pixels = normalize(images)
    expected = draw.lam * pixels + (1 - draw.lam) * pixels[draw.permutation]
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask_updates", [False, True])
def test_pruned_weights_stay_at_zero(mask_updates):
    model = narrow()
    masks = magnitude_masks(prunable_weights(model), 0.5)
    step = Step(model, RECIPE, hooks=[HeldMasks(model, masks, mask_updates)])
    for _ in range(2):
        step(*batch(), None, 0.1)
        for name, weight in prunable_weights(model).items():
            assert weight[~masks[name]].count_nonzero() == 0
            assert weight[masks[name]].count_nonzero() > 0


def test_learning_rate_zero_moves_nothing():
    model = narrow()
    before = [p.detach().clone() for p in model.parameters()]
    Step(model, RECIPE)(*batch(), None, 0.0)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("term", ["loss", "penalty"])
def test_sums_start_at_zero_and_add_up(term):
    step = Step(narrow(), RECIPE)
    assert getattr(step, term).item() == 0
    step(*batch(), None, 0.0, seeded(0))
    once = getattr(step, term).item()
    step(*batch(), None, 0.0, seeded(0))
    assert getattr(step, term).item() == pytest.approx(2 * once, rel=1e-4)
    assert once > 0


# ------------------------------------------------------------------------- bfloat16


def test_bfloat16_is_near_float32_and_keeps_its_weights():
    losses = []
    for precision in ("fp32", "bf16"):
        step = Step(narrow(), replace(RECIPE, train=replace(RECIPE.train, precision=precision)))
        step(*batch(), None, 0.1, seeded(0))
        losses.append(step.loss.item())
        assert {p.dtype for p in step.network.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_a_network_trained_in_bfloat16_is_rated_with_its_own_weights():
    """Its strided depthwise layers are special; a folded or averaged copy must not notice."""
    step = Step(narrow(), replace(RECIPE, train=replace(RECIPE.train, precision="bf16")))
    for _ in range(2):
        step(*batch(), None, 0.1, seeded(0))
    same = build(step.network.spec)
    same.load_state_dict(step.network.state_dict())
    images, _ = batch()
    found, expected = (logits_of(fold_batch_norm(each), images) for each in (step.network, same))
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------- optimisers


def test_no_bias_decay_spares_biases_and_batch_norm():
    model = narrow()
    weights, others = make_optimizer(model, TrainConfig()).param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (1e-5, 0)
    spared = {id(p) for p in others["params"]}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert {id(module.weight), id(module.bias)} <= spared
    assert all(p.ndim > 1 for p in weights["params"])
    assert len(weights["params"]) + len(spared) == len(list(model.parameters()))
    decayed = make_optimizer(model, TrainConfig(decay_all=True)).param_groups
    assert [group["weight_decay"] for group in decayed] == [1e-5, 1e-5]


KINDS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.999)}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.999)}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_optimiser_is_pytorchs(name):
    kind, settings = KINDS[name]
    model = nn.Linear(4, 3)
    other = copy.deepcopy(model)
    config = TrainConfig(optimizer=name, momentum=0.8, weight_decay=0.1, decay_all=True)
    ours = make_optimizer(model, config)
    theirs = kind(other.parameters(), lr=config.lr, weight_decay=0.1, **settings)
    for seed in range(3):
        for network, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            network(torch.randn(5, 4, generator=seeded(seed))).square().sum().backward()
            optimizer.step()
    assert type(ours) is kind
    for mine, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


def test_rates_are_multiplied_by_the_first_pattern_that_fits():
    """Without momentum a step is the rate times the gradient."""
    factors = {"classifier.bias": 0.0, "classifier.*": 0.25, "head.*": 4}
    ends = []
    for chosen in ({}, {f"*{name}": factor for name, factor in factors.items()}):
        model = narrow()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        recipe = trained_with(momentum=0.0, weight_decay=0.0, lr_factors=chosen)
        Step(model, recipe)(*batch(), None, 0.1)
        ends.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    plain, factored = ends
    changed = {name for name in plain if name.startswith("head.")}
    for name, moved in plain.items():
        factor = {"head.classifier.bias": 0.0, "head.classifier.weight": 0.25}.get(
            name, 4 if name in changed else 1
        )
        torch.testing.assert_close(factored[name], factor * moved, atol=1e-6, rtol=1e-4)
    assert changed
    assert all(plain[name].any() for name in changed)


def test_relative_rates_follow_the_size_of_each_tensor():
    """Adam's first step is the rate for every entry, so the move is the rate times the size."""
    model = narrow()
    with torch.no_grad():
        model.head.classifier.weight[:, ::2] = 0  # zeros do not count
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = trained_with(
        optimizer="adam", weight_decay=0.0, relative_lr=True, lr_factors={"stem.*": 0.5}
    )
    Step(model, recipe)(*batch(), None, 0.01)
    for name in ("head.classifier.weight", "stem.conv.weight"):
        old = before[name]
        size = old[old != 0].square().mean().sqrt().item()
        rate = 0.01 * size * (0.5 if name.startswith("stem") else 1.0)
        moved = (dict(model.named_parameters())[name].detach() - old).abs()
        assert moved.max().item() == pytest.approx(rate, rel=0.05), name


def test_a_pattern_of_rates_that_fits_nothing_is_refused():
    with pytest.raises(InputError, match=r"lr_factors.*'heads\.\*'"):
        Step(narrow(), trained_with(lr_factors={"heads.*": 2.0}))


def test_frozen_modules_keep_parameters_and_averages_to_the_last_bit():
    model = narrow()
    before = copy.deepcopy(model.state_dict())
    recipe = replace(RECIPE, train=replace(RECIPE.train, freeze=("stem", "blocks.[0-8]")))
    step = Step(model, recipe)
    for hook in step.hooks:
        hook.start_epoch(0)
    for _ in range(2):
        step(*batch(), None, 0.1, seeded(0))
    frozen = ("stem.", *(f"blocks.{number}." for number in range(9)))
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same is name.startswith(frozen), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if not n.startswith(frozen)}


@pytest.mark.parametrize(
    ("patterns", "named"), [(("stem", "tail.*"), "'tail.*'"), (("*",), "no parameter")]
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(patterns, named):
    with pytest.raises(InputError) as caught:
        freeze(narrow(), patterns)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
