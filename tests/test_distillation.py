"""The teacher's term by hand, and what a step does with a teacher."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_networks import seeded
from test_training_step import QUIET, batch, narrow

from micronet_lib.augmentation.mixing import draw_mix, mix
from micronet_lib.distillation import Committee, DistillationConfig, distillation_loss
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.training.step import Step
from micronet_lib.label_smoothing import smoothed_targets, soft_cross_entropy, target_table


def test_by_hand():
    """Student 1/2, 1/2; teacher 3/4, 1/4 at T = 1, and the same at T = 2 from twice the logits."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss(student, teacher).item() == pytest.approx(divergence)
    assert distillation_loss(student, 2 * teacher, 2.0).item() == pytest.approx(4 * divergence)
    both = distillation_loss(torch.zeros(2, 2), torch.cat([teacher, torch.zeros(1, 2)]))
    assert both.item() == pytest.approx(divergence / 2)  # the mean over images


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_softened_probabilities(temperature):
    logits, teacher = torch.randn(2, 6, 5, generator=seeded(0), dtype=torch.float64)
    logits.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(logits, teacher, temperature).backward()
    student, taught = (torch.softmax(each / temperature, 1) for each in (logits, teacher))
    torch.testing.assert_close(logits.grad, temperature * (student - taught) / 6)
    assert teacher.grad is None
    half = logits.detach().bfloat16(), teacher.detach().bfloat16()
    found = distillation_loss(*half)  # computed in float32
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(*(each.float() for each in half)))


def test_what_is_out_of_range_or_shape_is_refused():
    for name, values in {"weight": (-0.1, 1.1), "temperature": (0.0, math.inf)}.items():
        for value in values:
            with pytest.raises(InputError, match=f"distillation.{name}"):
                DistillationConfig(**{name: value})
    for shapes in (((4, 5), (4, 6)), ((4,), (4,))):
        with pytest.raises(InputError, match=r"\[N, C\]"):
            distillation_loss(*map(torch.zeros, shapes))


def test_a_committee_predicts_the_mean_of_its_members():
    members = [torch.nn.Linear(5, 4), torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)]
    x = torch.randn(6, 5, generator=seeded(1))
    found = Committee(members)(x).softmax(1)
    wanted = torch.stack([member(x).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(Committee(members)(x).exp().sum(1), torch.ones(6))


# ------------------------------------------------------------------------- in a step


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_step_mixes_both_terms_on_the_images_that_both_see(kind, weight):
    network, teacher = narrow(), narrow(0.5).eval()
    config = DistillationConfig(weight, temperature=3.0)
    (images, targets), draw = batch(8), draw_mix(kind, 8, seeded(2))
    seen = {}
    for name, each in (("student", network), ("teacher", teacher)):
        each.register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (*inputs, out)})
        )
    step = Step(network, replace(QUIET, distillation=config), teacher=teacher)
    table = target_table(network.classifier.weight, QUIET.smoothing)
    step(images, targets, draw, 0.1)

    mixed, *answers = mix(normalize(images), targets, draw)
    inputs, logits = seen["student"]
    torch.testing.assert_close(inputs, mixed)
    labels = soft_cross_entropy(logits, smoothed_targets(table, *answers))
    expected = (1 - weight) * labels
    if weight:
        assert torch.equal(seen["teacher"][0], inputs)
        expected = expected + weight * distillation_loss(logits, seen["teacher"][1], 3.0)
    else:
        assert "teacher" not in seen
    torch.testing.assert_close(step.loss, expected.detach())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_stays_as_it_is(precision):
    network, teacher = narrow(), narrow(0.5).eval().requires_grad_(False)
    before, modes = copy.deepcopy(teacher.state_dict()), []
    teacher.register_forward_pre_hook(
        lambda module, _: modes.extend(each.training for each in module.modules())
    )
    recipe = replace(QUIET, train=replace(QUIET.train, precision=precision))
    step = Step(network, recipe, teacher=teacher)
    start = network.classifier.weight.detach().clone()
    for _ in range(2):
        step(*batch(8), None, 0.1)
    assert modes
    assert not any(modes)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(network.classifier.weight, start)


def test_a_network_comes_nearer_to_its_teacher():
    network, teacher = narrow(), narrow(0.5).eval()
    step, losses = Step(network, QUIET, teacher=teacher), []
    for _ in range(8):
        step.loss.zero_()
        step(*batch(16), None, 0.05)
        losses.append(step.loss.item())
    assert losses[-1] < 0.7 * losses[0]
