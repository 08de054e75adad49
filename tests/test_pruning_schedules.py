"""How much goes in which round, and what a round begins with."""

import copy
import json
from dataclasses import asdict, replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from small_networks import flat, seeded
from torch import Tensor, nn

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.identity import run_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records.tables import paper
from micronet_lib.lab.running.networks import content_of, fresh_network, network_path, train_network
from micronet_lib.lab.storage.networks import pack
from micronet_lib.lab.storage.states import save_own
from micronet_lib.pruning.masks import (
    HeldMasks,
    apply_masks,
    current_masks,
    magnitude_masks,
    prunable_weights,
)
from micronet_lib.pruning.schedules import (
    PAPER_PRUNING,
    README_PRUNING,
    SCHEDULES,
    PruneConfig,
    PruneTo,
    exponential,
    linear,
    one_shot,
    prune_round,
)

# What the paper compares itself with: its schedule, its rewinding, and both; and no rounds at all.
EXPONENTIAL = PruneConfig(exponential(0.6, 4))
REWOUND = PruneConfig(linear(0.6, 4), rewind="initial")
LOTTERY = PruneConfig(exponential(0.6, 4), rewind="initial")
ONE_SHOT = PruneConfig(one_shot(0.6))

LAST_EPOCH = replace(PAPER_PRUNING, threshold_from="last_epoch")

NAMED = (PAPER_PRUNING, LAST_EPOCH, README_PRUNING, EXPONENTIAL, REWOUND, LOTTERY, ONE_SHOT)


# ---------------------------------------------------------------------------------- the schedules


def printed(point: str, metric: str) -> float:
    return paper("pruning").set_index(["point", "metric"])["value"][(point, metric)]


def test_the_papers_four_rounds():
    assert PAPER_PRUNING.sparsities == (0.15, 0.30, 0.45, 0.60)
    step = printed("paper", "step_percent") / 100
    assert len(PAPER_PRUNING.sparsities) == printed("paper", "rounds")
    assert PAPER_PRUNING.sparsities[-1] == printed("paper", "sparsity_percent") / 100
    assert PAPER_PRUNING.sparsities == pytest.approx([step * k for k in range(1, 5)])
    columns = paper("pruning").query("point.str.startswith('prune_')")["point"].unique()
    assert [f"prune_{round(100 * s)}" for s in (0, *PAPER_PRUNING.sparsities)] == list(columns)


def test_the_readmes_two_commands_and_its_example():
    assert README_PRUNING.sparsities == (0.1125, 0.225, 0.3375, 0.45, 0.50, 0.55, 0.60, 0.65)
    first, second = README_PRUNING.sparsities[:4], README_PRUNING.sparsities[4:]
    assert first[-1] == printed("readme_first", "max_sparsity_percent") / 100
    assert second[-1] == printed("readme_second", "max_sparsity_percent") / 100
    low, high = (printed("code", f"{end}_sparsity_percent") for end in ("min", "max"))
    assert first == linear(high / 100, int(printed("code", "rounds")), low / 100)
    example = [printed(f"readme_example_{k}", "sparsity_percent") / 100 for k in range(1, 5)]
    assert linear(0.5, 4) == tuple(example)


def test_exponential_takes_the_same_fraction_of_what_is_left_and_one_shot_all_at_once():
    assert exponential(0.6, 4) == pytest.approx((0.204729, 0.367544, 0.497027, 0.6), abs=5e-7)
    left = [1 - sparsity for sparsity in (0, *exponential(0.6, 4))]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.4**0.25] * 4)
    after = exponential(0.8, 3, start=0.5)  # 0.5, then twice as little in three steps of 0.4
    assert [1 - s for s in after] == pytest.approx([0.5 * 0.4 ** (k / 3) for k in (1, 2, 3)])
    assert one_shot(0.6) == ONE_SHOT.sparsities == (0.6,)
    assert one_shot(0.6, 3) == (0.6, 0.6, 0.6)


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 0.999),
    st.integers(1, 30),
    st.floats(0, 1),
)
def test_every_schedule_rises_to_the_final_sparsity_exactly(name, final, rounds, share):
    start = final * share
    sparsities = SCHEDULES[name](final, rounds, start)
    assert len(sparsities) == rounds
    assert sparsities[-1] == final
    assert all(a <= b for a, b in pairwise((start, *sparsities)))
    assert PruneConfig(sparsities).sparsities == sparsities


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_refuse_what_cannot_be_meant(make):
    for final, rounds, start, named in (
        (0.6, 0, 0.0, "0 rounds"),
        (60, 4, 0.0, "0.0 to 60"),
        (1.0, 4, 0.0, "0.0 to 1.0"),
        (0.3, 4, 0.5, "0.5 to 0.3"),
        (0.6, 4, -0.1, "-0.1 to 0.6"),
        (float("nan"), 4, 0.0, "0.0 to nan"),
    ):
        with pytest.raises(InputError, match=named):
            make(final, rounds, start)


# ------------------------------------------------------------------------------------ the settings


def test_settings_out_of_range_are_refused_in_one_line():
    bad = ((15, 30), (0.3, 1.0), (-0.1,), (float("nan"),), ("0.6",), (0.3, 0.2))
    for settings, named in (
        *(({"sparsities": sparsities}, f"sparsities.*{sparsities[-1]}") for sparsities in bad[1:]),
        ({"sparsities": bad[0]}, "sparsities has 15"),
        ({"scope": "per_kind"}, "'per_kind'; choose from global, kind, layer"),
        ({"threshold_from": "best"}, "'best'; choose from same, last_epoch"),
        ({"rewind": "late"}, "'late'; choose from none, initial, early"),
        ({"rewind": "early"}, "early_share is 0"),
        *(({"early_share": share}, "early_share is") for share in (-0.1, 1.1, 30, float("nan"))),
    ):
        with pytest.raises(InputError, match=named) as caught:
            PruneConfig(**settings)
        assert "\n" not in str(caught.value)
    assert PruneConfig((0, 0.3, 0.3)).sparsities == (0, 0.3, 0.3)


@pytest.mark.parametrize("share", [1e-9, 0.05, 1 / 3, 0.5, 1])
def test_early_is_the_whole_step_nearest_to_its_share(share):
    early = PruneConfig((0.3,), rewind="early", early_share=share)
    for num_steps in (1, 2, 7, 20, 248, 210_600):
        found = early.steps_kept(num_steps)
        assert 1 <= found <= num_steps
        assert found == 1 or abs(found - share * num_steps) <= 0.5
    assert [replace(early, rewind=other).steps_kept(20) for other in ("initial", "none")] == [0, 0]


def test_every_configuration_is_plain_data():
    for config in NAMED:
        plain = json.loads(json.dumps(asdict(config)))
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        assert PruneConfig(**plain) == config
    assert len(set(NAMED)) == len(NAMED)


# ---------------------------------------------------------------------------------------- a round


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10)
    )


def train(model: nn.Module, held: HeldMasks, seed: int, steps: int = 4) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=1e-3)
    generator = seeded(seed)
    for _ in range(steps):
        images = torch.randn(16, 3, 2, 2, generator=generator)
        targets = torch.randint(10, (16,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        held.before_step(optimizer)
        optimizer.step()
        held.after_step()


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("config", [PAPER_PRUNING, EXPONENTIAL, README_PRUNING, ONE_SHOT])
@pytest.mark.parametrize("scope", ["global", "kind"])
def test_rounds_of_training_keep_what_is_pruned_at_zero(config, scope):
    config, model = replace(config, scope=scope, threshold_from="same"), net()
    held, before = HeldMasks(model), None
    for index, sparsity in enumerate(config.sparsities):
        train(model, held, seed=index)
        masks = prune_round(model, config, index, before)
        held.set(masks)
        train(model, held, seed=100 + index)
        zeros = [(~mask).sum().item() for mask in masks.values()]
        if scope == "global":
            assert sum(zeros) == round(sparsity * 344)
        else:
            assert zeros == [round(sparsity * 24), round(sparsity * 320)]
        assert not flat(prunable_weights(model))[~flat(masks)].any()
        if before is not None:
            assert not (flat(masks) & ~flat(before)).any()
        before = masks


@pytest.mark.parametrize("rewind", ["none", "initial", "early"])
def test_rewinding_goes_back_to_the_weights_and_keeps_the_masks(rewind):
    model = net()
    held = HeldMasks(model)
    if rewind == "early":
        train(model, held, seed=5, steps=1)
    rewound = state(model)
    train(model, held, seed=0)
    config, before = PruneConfig((0.3, 0.6), rewind=rewind, early_share=0.1), None
    for index, sparsity in enumerate(config.sparsities):
        trained, weights = state(model), prunable_weights(copy.deepcopy(model))
        masks = prune_round(model, config, index, before, rewound=rewound)
        expected = magnitude_masks(weights, sparsity, before)  # of the trained, not the rewound
        assert torch.equal(flat(masks), flat(expected))
        source = trained if rewind == "none" else rewound
        for name, tensor in model.state_dict().items():
            there = source[name] * masks[name] if name in masks else source[name]
            assert torch.equal(tensor, there), name
        held.set(masks)
        train(model, held, seed=index)
        assert not flat(prunable_weights(model))[~flat(masks)].any()
        before = masks
    assert not torch.equal(flat(magnitude_masks(prunable_weights(net()), 0.6)), flat(masks))


def test_the_released_mix_up_goes_by_magnitudes_of_other_weights():
    """But for the first round of a command, which has one set of weights."""
    model = net()
    first = magnitude_masks(prunable_weights(model), 0.05)
    held, sets = HeldMasks(model, first), []
    for seed in range(2):
        train(model, held, seed)
        sets.append(state(model))
    best, last = sets
    twice = replace(LAST_EPOCH, loads_anew=(0, 1))
    for config, index, source in (
        (LAST_EPOCH, 0, best),
        (LAST_EPOCH, 1, last),
        (twice, 1, best),
        (README_PRUNING, 0, best),
        (README_PRUNING, 3, last),
        (README_PRUNING, 4, best),
        (README_PRUNING, 5, last),
        (PAPER_PRUNING, 1, best),
    ):
        before = first if index else None
        model.load_state_dict(best)
        masks = prune_round(model, config, index, before, last_epoch=last)
        sparsity = config.sparsities[index]
        expected, other = (
            flat(magnitude_masks({name: each[name] for name in first}, sparsity, before))
            for each in (source, last if source is best else best)
        )
        assert torch.equal(flat(masks), expected)
        assert not torch.equal(expected, other)
        for name, tensor in model.state_dict().items():  # it goes on with the best epoch's, masked
            assert torch.equal(tensor, best[name] * masks[name] if name in masks else best[name])


@pytest.mark.parametrize(("rounds", "source"), [(1, "best"), (2, "model"), (5, "best")])
def test_a_trained_round_prunes_the_weights_that_the_released_code_prunes(
    rounds, source, tmp_path, monkeypatch
):
    """At learning rate 0, so that what is seen is what the round began with."""
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    still = TrainConfig(epochs=1, lr=0.0, min_lr=0.0, num_images=32, num_validation=20)
    prune = replace(README_PRUNING, sparsities=README_PRUNING.sparsities[:rounds])
    recipe = Recipe(width_mult=0.1, train=replace(still, batch_size=16), prune=prune)
    smoke, parent = PROFILES["smoke"], recipe.parent
    sets = {name: fresh_network(recipe, seed) for seed, name in enumerate(("model", "best"))}
    names = prunable_weights(sets["best"])
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in names.items()}
    content = {
        **pack(sets["model"]),
        "best": sets["best"].state_dict(),
        "masks": masks if rounds > 1 else {},
        "env": {"commit": "abc1234"},
    }
    save_own(network_path(parent, smoke, 0), run_id(parent, 0), content)
    train_network(recipe, smoke, 0, "toy", progress=False)
    found = content_of(recipe, smoke, 0)
    of_source = magnitude_masks(prunable_weights(sets[source]), prune.sparsities[-1])
    assert torch.equal(flat(found["masks"]), flat(of_source))
    for name, weight in names.items():
        assert torch.equal(found["model"][name], weight * of_source[name])


# --------------------------------------------------------------------------------------- a change


def test_pruning_as_a_change_counts_the_zeros_that_are_there():
    model = net()
    masks = magnitude_masks(prunable_weights(model), 0.3)
    apply_masks(model, masks)
    before = state(model)
    assert PruneTo(None).apply(model) is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    (hook,) = PruneTo(None).hooks(model)
    assert torch.equal(flat(hook.masks), flat(masks))
    PruneTo(0.6, scope="layer").apply(model)
    found = current_masks(model)
    assert [round(0.6 * mask.numel()) for mask in found.values()] == [
        int((~mask).sum()) for mask in found.values()
    ]
    assert not (flat(found) & ~flat(masks)).any()
    (hook,) = PruneTo(0.6, mask_updates=True).hooks(model)
    assert hook.mask_updates
    train(model, hook, seed=0)
    assert not flat(prunable_weights(model))[~flat(found)].any()
    for sparsity in (0.1, 1.5):
        with pytest.raises(InputError):
            PruneTo(sparsity).apply(model)


def test_what_a_round_needs_is_asked_for_and_the_network_stays_as_it_was():
    model = net()
    masks = prune_round(model, PAPER_PRUNING, 0)
    before = state(model)
    other = {**before, "3.weight": torch.ones(1, 1)}
    broken = {**before, "3.weight": before["3.weight"] * torch.nan}
    for config, index, arguments, says in (
        (PAPER_PRUNING, 4, {"before": masks}, "no pruning round 4"),
        (PAPER_PRUNING, -1, {}, "no pruning round -1"),
        (PruneConfig(), 0, {}, "no pruning round 0"),
        (PAPER_PRUNING, 1, {}, "round 1 needs the masks"),
        (LAST_EPOCH, 1, {"before": masks}, "'last_epoch' needs"),
        (LAST_EPOCH, 1, {"before": masks, "last_epoch": other}, "see 3.weight"),
        (LAST_EPOCH, 1, {"before": masks, "last_epoch": broken}, "3.weight holds NaN"),
        (LOTTERY, 1, {"before": masks}, "'initial' needs"),
        (LOTTERY, 1, {"before": masks, "rewound": {}}, "see 0.weight"),
        (LOTTERY, 1, {"before": masks, "rewound": other}, "see 3.weight"),
        (PruneConfig((0.1, 0.1)), 1, {"before": masks}, "cannot prune less"),
    ):
        with pytest.raises(InputError, match=says):
            prune_round(model, config, index, **arguments)
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), says


def test_rewinding_to_a_larger_network_is_refused():
    model, larger = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    config = PruneConfig((0.5,), rewind="initial")
    with pytest.raises(InputError, match=r"another network: see 1\.weight"):
        prune_round(model, config, 0, rewound=larger.state_dict())
