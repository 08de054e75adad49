"""The distance to a teacher on held-out images: by hand, the same for all, and what chooses."""

import torch
from small_networks import seeded
from test_training_loop import images, start, tiny
from test_training_step import narrow

from micronet_lib.augmentation.policies import AugmentConfig, uniform_policies
from micronet_lib.distillation import distillation_loss
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.training.divergence import Divergence
from micronet_lib.lab.training.evaluation import logits_of


def test_it_is_the_divergence_on_the_augmented_images():
    torch.manual_seed(0)
    teacher, network, data = narrow().eval(), narrow().eval(), images(40, 3)
    plain = AugmentConfig(crop=False, flip=False)
    found = Divergence(network, teacher, data, None, plain)
    assert torch.equal(found.images, data.images)  # nothing to augment
    wanted = distillation_loss(logits_of(network, data.images), logits_of(teacher, data.images))
    torch.testing.assert_close(torch.tensor(found()), wanted, rtol=1e-2, atol=1e-3)
    assert Divergence(teacher, teacher, data, None, plain)() < 1e-4


def test_every_run_sees_the_same_images():
    torch.manual_seed(0)
    network, data = narrow().eval(), images(40, 3)
    policies = uniform_policies(seeded(5), 20)
    torch.manual_seed(1)
    one = Divergence(network, network, data, policies, AugmentConfig())
    torch.manual_seed(2)
    other = Divergence(network, network, data, policies, AugmentConfig())
    assert torch.equal(one.images, other.images)
    assert not torch.equal(one.images, data.images)


def test_the_network_nearest_to_its_teacher_is_the_best():
    recipe = tiny(ORN, epochs=4, lr=0.05)
    teacher = start(recipe, seed=5).network
    run = start(recipe, teacher=teacher.eval())
    states = []
    while run.epoch < 4:
        run.run_epoch()
        states.append({name: value.clone() for name, value in run.rated.state_dict().items()})
    distances = run.curve["validation_divergence"]
    assert len(distances) == 4
    nearest = len(distances) - 1 - distances[::-1].index(min(distances))
    assert all(torch.equal(value, run.best_state[n]) for n, value in states[nearest].items())
