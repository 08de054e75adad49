"""An offline teacher: its answers are kept, checked, mixed as the images are, and learned from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_networks import seeded
from test_training_loop import images
from test_training_step import batch, narrow
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.assembled_cnn.offline_teacher import TeacherLogits, mixed_answers
from micronet_lib.augmentation.mixing import draw_mix
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.distillation import DistillationConfig, distillation_loss
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.networks import network_of, network_path, stored_answers
from micronet_lib.lab.training.step import Step

QUIET = Recipe(train=TrainConfig(dropout=0.0))
OFFLINE = DistillationConfig(0.5, temperature=2.0, offline=True)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "mixup_two_batches", "mixup_one_batch"])
def test_the_mixed_answer_is_the_mean_of_two_predictions(kind):
    """Of probabilities, as in the released code, not of logits."""
    draw = draw_mix(kind, 6, seeded(0), alpha=0.5)
    logits = 3 * torch.randn(12 if kind == "mixup_two_batches" else 6, 10, generator=seeded(1))
    chances = (logits / 2.0).softmax(1)
    own = chances[:6] if draw.own is None else chances[draw.own]
    lam = draw.lam if draw.lam.ndim == 0 else draw.lam[:, None]
    expected = lam * own + (1 - lam) * chances[draw.permutation]
    torch.testing.assert_close((mixed_answers(logits, draw, 2.0) / 2.0).softmax(1), expected)
    assert mixed_answers(logits, None, 2.0) is logits


def test_answers_for_other_images_are_refused_in_one_line():
    stored = TeacherLogits("cifar100", torch.zeros(5, 3))
    assert torch.equal(stored.of("cifar100", 5), torch.zeros(5, 3))
    for dataset, num in (("embedded", 5), ("cifar100", 4)):
        with pytest.raises(
            InputError, match=f"5 images of cifar100, but {num} images of"
        ) as caught:
            stored.of(dataset, num)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"\[5\]; expected \[N, C\]"):
        TeacherLogits("cifar100", torch.zeros(5))


def test_a_step_learns_from_them():
    """The code's sum of two cross-entropies has the gradient of twice the mean with weight 0.5."""
    network = narrow()
    (images, targets), draw = batch(8), draw_mix("mixup_one_batch", 8, seeded(2))
    taught = torch.randn(8, 100, generator=seeded(3))
    step = Step(network, replace(QUIET, distillation=OFFLINE))
    logits = []
    network.register_forward_hook(lambda _, __, out: logits.append(out))
    step(images, targets, draw, 0.1, taught=taught)
    answers = mixed_answers(taught, draw, 2.0)
    labels = F.one_hot(targets, 100).float()
    mixed = torch.lerp(labels[draw.permutation], labels[draw.own], draw.lam[:, None])
    (out,) = logits
    expected = 0.5 * F.cross_entropy(out, mixed) + 0.5 * distillation_loss(out, answers, 2.0)
    torch.testing.assert_close(step.loss, expected.detach())
    twice = (0.5 * F.cross_entropy(out, mixed) * 2).detach()
    kd = 4 * F.cross_entropy(out / 2.0, (answers / 2.0).softmax(1)).detach()
    entropy = -4 * ((answers / 2.0).softmax(1) * (answers / 2.0).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(2 * step.loss, twice + kd - entropy)


@pytest.mark.parametrize("mix", ["none", "mixup_two_batches", "mixup_one_batch"])
def test_a_student_is_trained_from_stored_answers(mix, tmp_path):
    base = replace(PAPER, augment=AugmentConfig(mix=mix, mix_alpha=0.2))
    student = replace(base, teacher=PAPER, distillation=OFFLINE)
    with tiny_lab(tmp_path) as lab:
        sweep = sweep_of(teacher=PAPER, student=student)
        table = ensure(sweep, "smoke", progress=False)
        assert lab.trained == ["toy/teacher", "toy/student"]
        assert (table["n"] == 1).all()
        teacher = resolved(PAPER, PROFILES["smoke"])
        folder = network_path(teacher, PROFILES["smoke"], 0).parent
        (path,) = folder.parent.glob(f"{folder.name}-answers-*.pt")
        written = path.stat().st_mtime_ns
        ensure(sweep_of(again=replace(student, distillation=replace(OFFLINE, weight=0.9))), "smoke")
        assert path.stat().st_mtime_ns == written  # computed once


def test_they_are_the_teachers_logits_of_images_as_they_are(tmp_path):
    with tiny_lab(tmp_path):
        profile = PROFILES["smoke"]
        teacher = resolved(PAPER, profile)
        ensure(sweep_of(teacher=PAPER), "smoke", progress=False)
        learned = images(20, 0)
        found = stored_answers(teacher, profile, 0, learned)
        with torch.no_grad():
            expected = network_of(teacher, profile, 0)(normalize(learned.images))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(stored_answers(teacher, profile, 0, learned), found)
        other = stored_answers(teacher, profile, 0, images(20, 1))
        assert not torch.equal(other, found)
        folder = network_path(teacher, profile, 0).parent
        assert len(list(folder.parent.glob(f"{folder.name}-answers-*.pt"))) == 2
