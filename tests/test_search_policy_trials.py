"""What a proposal is worth, what the sampler learns from it, and what is compared at the end."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.micronet import Architecture, MicroNet, Stage
from micronet_lib.augmentation.image_ops import OPERATIONS
from micronet_lib.augmentation.policies import augment, compile_policies, draw, uniform_policies
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet, normalize
from micronet_lib.lab.search.policy_trials import (
    SearchConfig,
    SubPolicy,
    compare,
    rate_policies,
    run_trials,
    without_repeats,
)

pytest.importorskip("optuna")

TINY = Architecture("tiny", (Stage(4, 1), Stage(6, 1, 2)), stem_chs=4, expand_ratio=1.0)


def image_set(num: int, seed: int = 0, classes: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (num, 3, 4, 4), generator=generator).float()
    images = F.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
    targets = torch.arange(num) % classes
    return ImageSet(images, targets)


def outspoken_network(seed: int) -> MicroNet:
    """A network that has learned nothing, but says something else about every image."""
    torch.manual_seed(seed)
    network = MicroNet(TINY)
    nn.init.normal_(network.head.classifier.weight, std=100)
    return network.eval()


class BrightnessReader(nn.Module):
    """Tells the class of an image from its mean level, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(20, 235, 100), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        black, white = (normalize(torch.full((1, 3, 1, 1), c, dtype=torch.uint8)) for c in (0, 255))
        levels = 255 * ((inputs - black) / (white - black)).mean((1, 2, 3))
        return -(levels.unsqueeze(1) - self.levels).abs() / 10


def grey_images() -> ImageSet:
    """Images of one level each, which is what their class is."""
    targets = torch.arange(0, 100, 2)
    levels = BrightnessReader().levels[targets].round().to(torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(levels.expand(-1, 3, 32, 32).contiguous(), targets)


# ------------------------------------------------------------------------------------- measure


def test_the_measure_is_the_mean_over_all_draws():
    """Not over each image's best draw, as in the published search."""
    network, data = outspoken_network(0), image_set(20)
    policies = uniform_policies(torch.Generator().manual_seed(3), 7)
    found = rate_policies(network, data, policies, 4, seed=5)

    images, targets = data.images.repeat(4, 1, 1, 1), data.targets.repeat(4)
    draws = draw(policies, 80, torch.Generator().manual_seed(5), crop=False, flip=False)
    with torch.no_grad():
        logits = network(normalize(augment(images, draws)))
    losses = F.cross_entropy(logits, targets, reduction="none").view(4, 20)
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found.top1 == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert losses.min(0).values.mean() < 0.9 * found.loss  # what the best draws would say


def test_what_does_nothing_rates_as_the_images_themselves():
    network, data = outspoken_network(0), image_set(20)
    idle = compile_policies([[["Invert", 0.0, 0.5], ["Posterize", 1.0, 1.0]]])
    plain = rate_policies(network, data, None, 3, seed=0)
    assert rate_policies(network, data, idle, 3, seed=0).loss == pytest.approx(plain.loss, rel=1e-6)
    assert plain.num_examples == 20


def test_the_same_seed_throws_the_same_coins():
    """Two sub-policies are tried on the same images: only what is done to them differs."""
    network, data = BrightnessReader(), grey_images()
    inverted = compile_policies([[["Invert", 0.5, 0.0], ["Color", 1.0, 0.5]]])
    solarized = compile_policies([[["Solarize", 0.5, 0.0], ["Color", 1.0, 0.5]]])
    losses = [rate_policies(network, data, p, 2, seed=1).loss for p in (inverted, solarized)]
    assert losses[0] == losses[1]
    assert rate_policies(network, data, inverted, 2, seed=2).loss != losses[0]


# -------------------------------------------------------------------------------------- trials


def trials_of(folder: Path, num_trials: int, seed: int = 0, set_size: int = 1) -> list[dict]:
    config = SearchConfig(trials=num_trials, startup=20, keep=1, set_size=set_size, num_draws=1)
    return run_trials(BrightnessReader(), grey_images(), folder, 0, config, seed)


def test_the_sampler_finds_what_leaves_the_class_alone(tmp_path):
    """The class is the brightness: what changes it surprises, and is proposed less and less."""
    trials = trials_of(tmp_path, 60)
    plain = rate_policies(BrightnessReader(), grey_images(), None, 1, 0).loss
    excess = torch.tensor([trial["loss"] for trial in trials]) - plain
    assert excess[:20].mean() > 0.5 * plain
    assert excess[20:].mean() < 0.3 * excess[:20].mean()
    assert (excess[20:] < 0.01).float().mean() > 2 * (excess[:20] < 0.01).float().mean()


def test_a_trial_is_what_it_says(tmp_path):
    trials = trials_of(tmp_path, 5, set_size=3)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3, 4]
    for trial in trials:
        assert len(trial["sub_policies"]) == 3
        policies = compile_policies(trial["sub_policies"])
        again = rate_policies(BrightnessReader(), grey_images(), policies, 1, 0)
        assert again.loss == trial["loss"]
        for name, probability, level in (step for sub in trial["sub_policies"] for step in sub):
            assert name in OPERATIONS
            assert (probability, level) == (round(probability, 2), round(level, 2))


def test_trials_are_kept_and_gone_on_with(tmp_path):
    whole = trials_of(tmp_path / "whole", 26)
    assert trials_of(tmp_path / "parts", 3) == whole[:3]
    assert trials_of(tmp_path / "parts", 22) == whole[:22]
    assert trials_of(tmp_path / "parts", 26) == whole
    assert trials_of(tmp_path / "other", 3, seed=1) != whole[:3]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"no database" * 99), Path.mkdir])
def test_a_database_that_cannot_be_used_is_named(tmp_path, make):
    make(tmp_path / "trials.db")
    with pytest.raises(InputError, match=r"trials\.db") as error:
        trials_of(tmp_path, 1)
    assert "\n" not in str(error.value)


def test_a_database_that_fills_up_is_named(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")

    def full(*_):
        raise optuna.exceptions.StorageInternalError("disk I/O error\nand a long story")

    monkeypatch.setattr(optuna.study.Study, "add_trial", full)
    with pytest.raises(InputError, match=r"trials\.db cannot be used \(disk I/O error\)"):
        trials_of(tmp_path, 1)


# ----------------------------------------------------------------------------------- comparing


def test_repeats_go():
    one: SubPolicy = [["Color", 0.1, 0.2], ["Cutout", 0.3, 0.4]]
    two: SubPolicy = [["Color", 0.1, 0.2], ["Cutout", 0.3, 0.5]]
    assert without_repeats([one, two, one, one[::-1]]) == [one, two, one[::-1]]


def test_controls_are_as_many_and_shuffled_ones_keep_their_strengths(monkeypatch):
    seen = []

    def remember(network, data, policies, num_draws, seed):
        seen.append(policies)
        return rate_policies(network, data, policies, num_draws, seed)

    monkeypatch.setattr("micronet_lib.lab.search.policy_trials.rate_policies", remember)
    searched = [
        [[name, 0.1 * number, 0.5], ["Cutout", 0.2, 0.1 * number]]
        for number, name in enumerate(OPERATIONS[:8])
    ]
    networks = [outspoken_network(0), outspoken_network(1)]
    rows = compare(networks, image_set(10), searched, seed=0)
    kinds = [row["policies"] for row in rows[: len(rows) // 2]]
    assert kinds[:4] == ["none", "searched", "shuffled", "random"]
    assert [(row["fold"], row["policies"]) for row in rows] == [
        (f, k) for f in (0, 1) for k in kinds
    ]
    none, found, shuffled, random = seen[:4]
    assert none is None
    assert len(random.ops) == len(searched)
    assert torch.equal(found.ops.flatten().sort().values, shuffled.ops.flatten().sort().values)
    assert not torch.equal(found.ops, shuffled.ops)
    assert torch.equal(found.probabilities, shuffled.probabilities)
