"""From a recipe to its network: fresh, started, changed, trained, and read again."""

import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from published_format import pruned_network, published_state, save
from small_networks import single_thread
from tiny_lab import chain, rounds, same, sweep_of, tiny_lab

from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.beyond import quantizers
from micronet_lib.beyond.adaptive_rounding import RoundAdaptively
from micronet_lib.beyond.changes import Allocate
from micronet_lib.beyond.gates import RemoveGates
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.host.places import policy_path
from micronet_lib.lab.recipes.bases import ORN, PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import run_id
from micronet_lib.lab.recipes.inputs import input_paths
from micronet_lib.lab.recipes.profile import PROFILES, Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import networks
from micronet_lib.lab.running.lineage import Case, cases, missing_files
from micronet_lib.lab.running.measure import ensure, trained
from micronet_lib.lab.running.networks import (
    content_of,
    fresh_network,
    network_of,
    policies_of,
    training_data,
)
from micronet_lib.lab.storage.states import load_state
from micronet_lib.lab.training import loop
from micronet_lib.lab.training.loop import Run
from micronet_lib.lab.training.step import Step
from micronet_lib.pruning.masks import HeldMasks, current_masks
from micronet_lib.pruning.schedules import PruneConfig, PruneTo
from micronet_lib.srip.penalty import SripConfig

TINY = Profile(
    *("tiny", "embedded", "tests"),
    epoch_share=1 / 300,
    num_images=48,
    num_validation=100,
    width_mult=0.1,
    batch_size=16,
    bn_momentum=0.2,
)
CONFIGS = {
    "paper": PruneConfig((0.3, 0.6)),
    "released": PruneConfig((0.3, 0.6), threshold_from="last_epoch", mask_updates=True),
    "initial": PruneConfig((0.3, 0.6), rewind="initial"),
    "early": PruneConfig((0.3, 0.6), rewind="early", early_share=0.5, scope="kind"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    with single_thread():
        yield


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


def publish(tmp_path, name="micronet_v1_pr_60", factor=1.0, model="micronet_v1_released"):
    path = tmp_path / "data" / "kaist" / f"{name}.t7"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = pruned_network(model)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(factor)
    save(published_state(source), path, as_zip=False)
    return source


# --------------------------------------------------------------------------------- where it begins


def test_the_same_seed_makes_the_same_network():
    recipe = TINY.apply(PAPER)
    one, again, other = (fresh_network(recipe, seed).state_dict() for seed in (0, 0, 1))
    assert same(dict(one), dict(again))
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])
    assert one["stem.conv.weight"].shape[0] == 4  # 32 channels at a tenth of the width, at least 4


def test_options_reach_the_network():
    network = fresh_network(Recipe(options={"num_classes": 7}), 0)
    assert network.classifier.out_features == 7
    with pytest.raises(InputError, match="depth"):
        fresh_network(Recipe(options={"depth": 7}), 0)


def test_the_papers_matrices_start_semi_orthogonal():
    weight = fresh_network(TINY.apply(PAPER), 0).blocks[3].conv_expand.weight.flatten(1)
    torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5, rtol=0)


def test_trained_distribution_is_taken_from_the_file_it_names(tmp_path):
    recipe = SWEEPS["spectra"].point("trained_distribution").recipe
    publish(tmp_path)
    largest = fresh_network(recipe, 0).blocks[0].conv_expand.weight.abs().max().item()
    publish(tmp_path, factor=3.0)
    again = fresh_network(recipe, 0).blocks[0].conv_expand.weight.abs().max().item()
    assert again == pytest.approx(3 * largest, rel=1e-5)


def test_a_published_network_has_its_changes_and_savings_applied(tmp_path):
    source = publish(tmp_path)
    plain = network_of(Recipe(checkpoint="micronet_v1_pr_60"), TINY, 0)
    assert same(dict(plain.state_dict()), dict(source.state_dict()))
    recipe = Recipe(checkpoint="micronet_v1_pr_60", savings=("dead_gates",))
    assert network_of(recipe, TINY, 0).architecture.downsample_se == "none"
    pruned = network_of(Recipe(checkpoint="micronet_v1_pr_60", changes=(PruneTo(0.8),)), TINY, 0)
    zeros = [mask.logical_not().sum().item() for mask in current_masks(pruned).values()]
    sizes = [mask.numel() for mask in current_masks(pruned).values()]
    assert sum(zeros) == round(0.8 * sum(sizes))
    with pytest.raises(InputError, match="no checkpoint at"):
        network_of(Recipe(checkpoint="theirs"), TINY, 0)


def test_a_network_that_was_not_trained_here_is_refused(lab):
    with pytest.raises(InputError, match="no trained network"):
        network_of(PROFILES["smoke"].apply(ORN), PROFILES["smoke"], 0)


# ------------------------------------------------------------------------------ what it learns from


def test_missing_policies_are_replaced_on_drawn_images_only_and_the_record_says_so():
    recipe = Recipe(augment=AugmentConfig(policy="fast_autoaugment"))
    policies, notes = policies_of(recipe, TINY)
    assert policies is not None
    assert "random policies" in notes[0]
    with pytest.raises(InputError, match="data fetch policies"):
        policies_of(recipe, PROFILES["quick"])


def test_policies_come_from_their_file(tmp_path):
    path = tmp_path / "data" / "policies" / "fast_autoaugment_cifar100.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"one": [[["Invert", 0.5, 0.0], ["Rotate", 1.0, 1.0]]], "two": []}))
    config = AugmentConfig(policy="fast_autoaugment", policy_set="one")
    policies, notes = policies_of(Recipe(augment=config), PROFILES["quick"])
    assert policies is not None
    assert policies.values[0, 1] == 30
    assert notes == []
    assert policies_of(Recipe(), TINY) == (None, [])
    assert policies_of(Recipe(augment=AugmentConfig(policy="random")), TINY)[1] == []
    assert policy_path("searched").is_file()  # it is in the repository


def test_validation_images_are_held_out_or_not():
    device = torch.device("cpu")
    everything = replace(TINY, num_images=0, num_validation=0)
    held, _ = training_data(everything.apply(PAPER), everything, device)
    whole = replace(PAPER, train=replace(PAPER.train, hold_out=False))
    taken, notes = training_data(everything.apply(whole), everything, device)
    assert (len(held.train), len(held.validation), held.test) == (4500, 500, None)
    assert (len(taken.train), taken.validation) == (5000, None)
    assert "validation" in notes[-1]
    watched, _ = training_data(everything.apply(RELEASED), everything, device)
    assert watched.test is not None


# ---------------------------------------------------------------------------------------- training


def test_a_trained_network_is_found_by_recipe_and_seed_alone(lab):
    network = trained(SWEEPS["stages"], "3.0-orn", "smoke", progress=False)
    other = trained(SWEEPS["srip_placement"], "pointwise", "smoke", progress=False)
    assert lab.trained == ["stages/3.0-orn"]
    assert same(dict(network.state_dict()), dict(other.state_dict()))
    assert not network.training
    (folder,) = (lab.runs / "smoke" / "networks").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["curve.csv", "lock", "network.pt"]
    trained(SWEEPS["stages"], "3.0-orn", "smoke", seed=1, progress=False)
    assert len(lab.trained) == 2


def test_a_network_is_read_as_its_file_says_and_not_as_a_step_left_it(lab):
    """In bfloat16 on a CPU a step puts layers of its own into the network that it trains."""
    half = replace(ORN, train=replace(ORN.train, precision="bf16"))
    rows = ensure(sweep_of(half=half), "smoke", progress=False)
    assert rows["n"].item() == 1
    network = trained(sweep_of(half=half), "half", "smoke", progress=False)
    assert {type(m).__name__ for m in network.modules() if hasattr(m, "stride")} == {"Conv2d"}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rounds_of_pruning_follow_each_other(lab, config):
    sweep = rounds(ORN, config)
    ensure(sweep, "smoke", point="round2", progress=False)
    assert lab.trained == ["rounds/dense", "rounds/round1", "rounds/round2"]
    assert lab.recorded == ["rounds/round2"]
    stages = ("dense", "round1", "round2")
    models = [trained(sweep, stage, "smoke", progress=False) for stage in stages]
    masks = [current_masks(model) for model in models]
    kept = [sum(mask.sum().item() for mask in each.values()) for each in masks]
    assert kept[1:] == [pytest.approx(kept[0] * share, rel=0.01) for share in (0.7, 0.4)]
    assert not any((masks[2][name] & ~masks[1][name]).any() for name in masks[0])


def test_a_round_that_goes_on_does_not_rewind_again(lab, monkeypatch):
    sweep, twice = rounds(ORN, CONFIGS["early"]), {"train.epochs": 2}
    expected = trained(sweep, "round1", "smoke", 0, twice, progress=False).state_dict()
    (case,) = cases(sweep, PROFILES["smoke"], 0, twice, "round1")
    case.network_path.unlink()
    rewound = []
    early_weights, run_epoch = networks._early_weights, Run.run_epoch

    def counted(*args):
        rewound.append(args)
        return early_weights(*args)

    def cut(run, bar=None):
        if run.epoch == 1 and any(isinstance(hook, HeldMasks) for hook in run.step.hooks):
            raise KeyboardInterrupt
        run_epoch(run, bar)

    monkeypatch.setattr(networks, "_early_weights", counted)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "run_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            ensure(sweep, "smoke", overrides=twice, point="round1", progress=False)
    assert len(rewound) == 1
    found = trained(sweep, "round1", "smoke", 0, twice, progress=False).state_dict()
    assert len(rewound) == 1
    assert same(dict(found), dict(expected))


PLANS = {
    "widths, zeros and channels": (Allocate(0.0004, num_images=32),),
    "gates, then rounding by blocks": (
        RemoveGates(16),
        RoundAdaptively(4, 6, num_images=32, iterations=3),
    ),
    "widths learned towards a score": (PruneTo(0.4), Adjust(target=1e-4, num_images=16)),
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_a_plan_made_from_images_is_kept_and_not_made_again(lab, monkeypatch, changes):
    """Killed within the change and after it, it ends in the bits of an undisturbed run."""
    base = replace(ORN, model="micronet_v1", width_mult=2.5)
    by_answers = replace(ORN.train, optimizer="adam", relative_lr=True, initialization="default")
    sweep = sweep_of(
        base=base, after=Recipe(start=base, changes=changes, teacher=base, train=by_answers)
    )
    monkeypatch.setattr(quantizers, "COMPILE_FROM", sys.maxsize)  # compiling takes longer
    thrice = {"train.epochs": 3, "train.batch_size": 16}
    expected = trained(sweep, "after", "smoke", 0, thrice, progress=False)
    (case,) = cases(sweep, PROFILES["smoke"], 0, thrice, "after")
    wanted = content_of(case.recipe, case.profile, case.seed)
    case.network_path.unlink()
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    made, changed, step = [], networks._changed, Step.__call__

    def dies_after_half_of_it(network, recipe, *args):
        if len(changes) > 1:
            changed(network, replace(recipe, changes=changes[:1]), *args)
        raise KeyboardInterrupt

    def counted(network, recipe, *args):
        if recipe.changes:
            made.append(recipe)
        return changed(network, recipe, *args)

    def dies_within_an_epoch(self, *args):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 4:  # two steps an epoch
            raise KeyboardInterrupt
        step(self, *args)

    for where, what in ((networks, dies_after_half_of_it), (Step, dies_within_an_epoch)):
        with monkeypatch.context() as patch:
            patch.setattr(networks, "_changed", what if where is networks else counted)
            if where is Step:
                patch.setattr(Step, "__call__", what)
            with pytest.raises(KeyboardInterrupt):
                ensure(sweep, "smoke", overrides=thrice, point="after", progress=False)
    assert len(made) == 1
    state = load_state(case.folder, run_id(case.recipe, case.seed))
    assert state is not None
    assert state["epoch"] == 1
    assert state["planned"]["spec"] == wanted["spec"]
    monkeypatch.setattr(networks, "_changed", counted)
    found = trained(sweep, "after", "smoke", 0, thrice, progress=False)
    assert len(made) == 1
    assert found.spec == expected.spec
    assert same(dict(found.state_dict()), dict(expected.state_dict()))
    again = content_of(case.recipe, case.profile, case.seed)
    assert all(same(again[name], wanted[name]) for name in ("model", "best", "masks", "curve"))


def test_a_student_starts_from_its_parent_and_learns_from_its_teacher(lab, monkeypatch):
    sweep = chain(ORN)
    runs = []
    real = networks.train

    def train(run, *args):
        runs.append((run, run.network.state_dict(), run.step.objective.teacher))
        return real(run, *args)

    started = []
    init = Run.__init__

    def remember(run, network, *args):
        started.append({name: value.clone() for name, value in network.state_dict().items()})
        init(run, network, *args)

    monkeypatch.setattr(networks, "train", train)
    monkeypatch.setattr(Run, "__init__", remember)
    dense = trained(sweep, "dense", "smoke", progress=False).state_dict()
    half = trained(sweep, "half", "smoke", progress=False).state_dict()
    assert runs[0][2] is None
    teacher = runs[1][2]
    assert not teacher.training
    images = torch.randn(4, 3, 32, 32)
    (case,) = cases(sweep, PROFILES["smoke"], point="dense")
    taught = network_of(case.recipe, case.profile, case.seed)
    assert same(dict(taught.state_dict()), dict(dense))
    with torch.no_grad():  # batch norm is folded in the teacher
        torch.testing.assert_close(teacher(images), taught(images), rtol=1e-3, atol=1e-3)
    pruned = {name: w for name, w in started[1].items() if w.ndim > 1}
    zeros = {name: w == 0 for name, w in pruned.items()}
    for name, weight in pruned.items():
        assert torch.equal(weight[~zeros[name]], dense[name][~zeros[name]]), name
        assert not half[name][zeros[name]].any(), f"{name} came back"
    assert isinstance(runs[1][0].step.optimizer, torch.optim.Adam)


def test_a_file_says_how_its_network_was_trained(lab):
    (case,) = cases(SWEEPS["stages"], PROFILES["smoke"], point="3.0-orn")
    trained(SWEEPS["stages"], "3.0-orn", "smoke", progress=False)
    content = content_of(case.recipe, case.profile, case.seed)
    assert content["spec"]["name"] == case.recipe.model
    assert {"device", "torch", "commit", "date", "wall_s"} <= content["env"].keys()
    assert len(content["curve"]["train_loss"]) == case.recipe.train.epochs


@pytest.mark.parametrize("seed", [0, 7])
def test_rewinding_returns_to_weights_that_the_dense_run_passed(lab, monkeypatch, seed):
    """At every step of it, also within an epoch, and with its teacher."""
    taught = replace(PAPER, model=ORN.model, teacher=replace(ORN, srip=SripConfig(coef=0.0)))
    sweep = rounds(taught, CONFIGS["early"])
    longer = {"train.epochs": 2, "train.batch_size": 8}
    passed = []

    def remember(step, *args):
        call(step, *args)
        passed.append({name: value.clone() for name, value in step.network.state_dict().items()})

    call = Step.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", remember)
        trained(sweep, "dense", "smoke", seed, longer, progress=False)
    passed = passed[-8:]  # after those of the teacher
    for share in (0.05, 0.3, 0.5, 0.7, 1.0):
        early = longer | {"prune.early_share": share}
        (case,) = cases(sweep, PROFILES["smoke"], seed, early, "round1")
        data, _ = training_data(case.recipe, case.profile, torch.device("cpu"))
        found = networks._early_weights(case.recipe, case.profile, seed, data)
        assert same(found, passed[max(1, round(8 * share)) - 1]), share


def test_every_stage_of_a_chain_draws_anew():
    half = replace(ORN, start=ORN)
    assert [r.depth for r in (ORN, half, replace(ORN, start=half))] == [0, 1, 2]
    assert replace(ORN, start=Recipe(checkpoint="a")).depth == 0
    assert replace(ORN, prune=CONFIGS["paper"]).depth == 2


def test_rounds_and_changes_do_not_go_together():
    with pytest.raises(InputError, match="together"):
        replace(ORN, prune=CONFIGS["paper"], changes=(PruneTo(0.6),))


@dataclass(frozen=True)
class Looks:
    """A change that keeps the images that it is given."""

    num_images: int = 8

    def apply(self, network, images):
        network.seen = images
        return network

    def hooks(self, network):
        return []


def test_a_change_reads_augmented_training_images_drawn_by_the_seed(tmp_path):
    publish(tmp_path)
    base = Recipe(checkpoint="micronet_v1_pr_60", changes=(Looks(), PruneTo(0.8), Looks(4)))
    plain = replace(base, augment=AugmentConfig(crop=False, flip=False))
    first, again = (network_of(plain, TINY, 3).seen for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, network_of(plain, TINY, 4).seen)
    assert first.shape == (4, 3, 32, 32)
    known = normalize(load_split(TINY.dataset, "train").images)
    for image in first:  # not augmented, so that each is one of them
        assert (known == image).flatten(1).all(1).any()
    assert not torch.equal(first, network_of(base, TINY, 3).seen)
    for number in (-1, 10**6):
        with pytest.raises(InputError, match=rf"Looks.num_images is {number}"):
            network_of(replace(plain, changes=(Looks(number),)), TINY, 0)


def test_files_of_a_change_that_reads_images(tmp_path, monkeypatch):
    """Without any training, its images and policies decide the network too."""
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    augment = AugmentConfig(policy="fast_autoaugment", policy_set="all")
    looks = Recipe(checkpoint="a", changes=(Looks(),), augment=augment)
    taught = Recipe(start=looks, changes=(Looks(0),))
    named = {
        name: missing_files(Case(sweep_of(), name, recipe, PROFILES["quick"], 0), trains=False)
        for name, recipe in {
            "looks": looks,
            "starts from it": taught,
            "blind": replace(looks, changes=(Looks(0),)),
        }.items()
    }
    retrieval = SWEEPS["retrieval"]
    blank = Case(retrieval, "untrained", retrieval.point("untrained").recipe, PROFILES["quick"], 0)
    assert missing_files(blank, trains=False) == ["cifar-100-python/test"]
    read = ["cifar-100-python/train", f"policies/{policy_path('fast_autoaugment').name}"]
    assert named["blind"] == ["kaist/a.t7", "cifar-100-python/test"]
    assert named["looks"] == named["starts from it"] == [*named["blind"], *read]
    assert [path.name for path in input_paths(looks)] == ["a.t7", read[1].split("/")[1]]


def test_a_fresh_network_leaves_the_numbers_that_a_page_draws():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fresh_network(Recipe(model="micronet_v1", width_mult=0.25), 0)
    assert torch.equal(torch.rand(2), expected)
