"""DropBlock: by hand, beside timm's with the same squares, and in the training of any network."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread
from test_training_loop import start, tiny
from test_training_step import batch
from torch import nn

from micronet_lib.architecture import Wrapped, build
from micronet_lib.architecture.tweaks import SelectiveKernel
from micronet_lib.assembled_cnn.drop_block import (
    DropBlock,
    DropBlockConfig,
    begins,
    drop_block,
    drop_block_places,
)
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import ALS, PAPER
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.training import captured
from micronet_lib.lab.training.captured import CapturedStep
from micronet_lib.lab.training.loop import train
from micronet_lib.lab.training.step import Step
from micronet_lib.scoring.bill import score_network

LATE = DropBlockConfig(at={"blocks.0.*": 0.25, "blocks.*": 1.0}, keep_prob=0.5, block_size=4)


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


# ------------------------------------------------------------------------- the function


def test_a_square_is_dropped_whole_and_the_rest_keeps_the_sum(monkeypatch):
    noise = torch.ones(1, 1, 4, 4)  # a square of 3 x 3 can begin at 4 x 4 places of 6 x 6 pixels
    noise[0, 0, 1, 2] = 0.0
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    x = torch.arange(72.0).view(2, 1, 6, 6) + 1
    found = drop_block(x, 0.1, block_size=3)
    mask = torch.ones(6, 6)
    mask[1:4, 2:5] = 0
    torch.testing.assert_close(found, x * mask * 36 / 27)  # the same for both images


def test_gamma_is_that_of_the_paper():
    # 14 x 14 pixels have 8 x 8 places for a square of 7.
    assert begins(0.1, 7, 14, 14) == pytest.approx(0.1 / 49 * 14 * 14 / 64)
    assert begins(0.1, 7, 7, 7) == pytest.approx(0.1)  # the whole map


@pytest.mark.parametrize("shared", [True, False])
def test_about_the_asked_share_is_dropped_and_the_mean_stays(shared):
    x = torch.ones(8, 1000, 16, 16)
    found = drop_block(x, 0.1, 4, shared, seeded(0))
    dropped = (found == 0).float().mean()
    # Squares overlap, so it is a little less than a tenth: 1 - exp(-0.1) of the inner pixels.
    assert 0.07 < dropped < 0.1
    assert found.mean() == pytest.approx(1, abs=1e-5)
    one = found[:1].expand_as(found)
    assert torch.equal(found, one) is shared


def test_on_a_map_smaller_than_the_square_whole_channels_are_dropped():
    found = drop_block(torch.ones(1, 400, 4, 4), 0.25, 7, generator=seeded(0))
    each = found.flatten(2)
    assert ((each == 0).all(2) | (each > 0).all(2)).all()
    assert (each == 0).float().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


def test_nothing_and_everything():
    x = torch.rand(2, 3, 8, 8, generator=seeded(0))
    assert torch.equal(drop_block(x, 0.0), x)
    assert torch.equal(drop_block(x, 1.0, 8), torch.zeros_like(x))
    assert drop_block(x.bfloat16(), 0.1, 3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.1, 0), "block_size is 0"),
        ((0.1, 2.5), "block_size is 2.5"),
        ((2, 3), r"drop_prob is 2; give a fraction in \[0, 1\]"),
        ((-0.5, 3), "drop_prob is -0.5"),
        ((float("nan"), 3), "drop_prob is nan"),
    ],
)
def test_a_number_outside_its_range_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        drop_block(torch.ones(1, 1, 4, 4), *given)


def test_a_probability_on_a_device_is_not_waited_for():
    x = torch.ones(1, 2, 4, 4, device="meta")
    assert drop_block(x, torch.zeros((), device="meta"), 3).shape == x.shape


@pytest.mark.parametrize("size", [2, 3, 4, 7, 9])
def test_it_is_timms_with_the_same_squares(size, monkeypatch):
    """Timm draws the middle of a square everywhere, we its corner where it fits."""
    timm = pytest.importorskip("timm.layers.drop")
    x = torch.randn(4, 8, 9, 9, generator=seeded(1))
    noise = torch.rand(4, 8, 10 - size, 10 - size, generator=seeded(2))
    asked = []

    def middles(self, gamma):
        asked.append(gamma)
        self.zero_()
        half = size // 2
        self[..., half : half + 10 - size, half : half + 10 - size] = noise < gamma
        return self

    monkeypatch.setattr(torch.Tensor, "bernoulli_", middles)
    theirs = timm.drop_block_2d(x, 0.3, size, couple_channels=False)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    torch.testing.assert_close(drop_block(x, 0.3, size, batch_shared=False), theirs)
    assert asked == [pytest.approx(begins(0.3, size, 9, 9))]
    assert (theirs == 0).any()


# --------------------------------------------------------------------------- the places


def test_it_acts_on_batch_norms_and_on_selective_kernels_as_a_whole():
    network = build("resnet", stem="cifar", blocks=[1, 1], width_mult=0.125, sk_ratio=2)
    places = drop_block_places(network, {"stages.0.*": 0.5, "stages.1.*": 1.0})
    kinds = {name: type(module) for name, (module, _) in places.items()}
    assert list(kinds) == [
        *("stages.0.0.conv_reduce.1", "stages.0.0.spatial", "stages.0.0.conv_expand.1"),
        *("stages.0.0.shortcut.1", "stages.1.0.conv_reduce.1", "stages.1.0.spatial"),
        *("stages.1.0.conv_expand.1", "stages.1.0.shortcut.1"),
    ]
    assert kinds["stages.1.0.spatial"] is SelectiveKernel
    assert [share for _, share in places.values()] == [0.5] * 4 + [1.0] * 4


def test_it_leaves_out_what_widens_a_little_branch():
    network = build("resnet", stem="cifar", blocks=[2, 2], width_mult=0.125, big_little=[2, 4])
    named = {name for name, _ in network.named_modules()}
    places = drop_block_places(network, {"stages.0.*": 0.25})
    assert "stages.0.widen.1" in named
    assert "stages.0.widen.1" not in places
    assert {"stages.0.big.0.conv_expand.1", "stages.0.merge.0.conv_expand.1"} < set(places)


def test_the_first_pattern_counts_and_a_share_of_0_is_left_out():
    network = build("c_efficientnet_3.0", width_mult=0.1)
    places = drop_block_places(network, {"blocks.3.*": 0.0, "blocks.[34].*": 0.5, "stem.*": 1})
    assert {name.rpartition(".")[0] for name in places} == {"stem", "blocks.4"}


def test_any_network_of_batch_norms_will_do():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    network = Wrapped(module, classifier="3").train()
    hook = DropBlock(network, DropBlockConfig({"network.1": 1.0}, 0.5, 0.5), 1)
    hook.start_epoch(0)
    dropped = (network.network[:2](torch.randn(2, 3, 32, 32)) == 0).all(0)  # in both images
    assert 0.2 < dropped.float().mean() < 0.6


def test_a_pattern_that_fits_nothing_is_refused():
    network = build("c_efficientnet_3.0", width_mult=0.1)
    with pytest.raises(
        InputError, match=r"no batch norm .* 'stages\.\*'.* blocks\.15\.bn_shortcut"
    ):
        drop_block_places(network, {"stages.*": 1.0})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_prob": 0.0}, "keep_prob is 0.0"),
        ({"start_keep_prob": 1.1}, "start_keep_prob is 1.1"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 2.5}, "block_size is 2.5"),
        ({"block_size": True}, "block_size is True"),
        ({"at": {"blocks.*": 1.5}}, "1.5 for 'blocks"),
        ({"at": {"blocks.*": "all"}}, "'all' for 'blocks"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, said):
    with pytest.raises(InputError, match=said) as caught:
        DropBlockConfig(**settings)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- in training


def test_the_probability_rises_in_a_straight_line():
    hook = DropBlock(build("c_efficientnet_3.0", width_mult=0.1), LATE, 4)
    found = []
    for _ in range(5):
        found.append(float(hook.drop_prob))
        hook.after_step()
    assert found == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])


def test_nothing_stays_in_the_trained_network():
    recipe = tiny(replace(ALS, drop_block=LATE), epochs=2, ema_decay=0.5)
    run = start(recipe)
    hook = next(hook for hook in run.step.hooks if isinstance(hook, DropBlock))
    trained = train(run, None, "toy", progress=False)
    assert float(hook.state_dict()["done"]) == 2 * run.steps
    fresh = build(recipe.model, width_mult=0.1).eval()
    for network in (trained.network, run.network, run.rated):
        assert not any(module._forward_hooks for module in network.modules())
        assert network.state_dict().keys() == fresh.state_dict().keys()
    fresh.load_state_dict(trained.network.state_dict())
    assert score_network(trained.network) == score_network(fresh)


def test_it_changes_training_and_not_rating():
    plain, dropped = start(tiny(ALS)), start(tiny(replace(ALS, drop_block=LATE)))
    for run in (plain, dropped):
        run.run_epoch()
    x = torch.randn(2, 3, 32, 32, generator=seeded(0))
    network = dropped.network.eval()
    bare = copy.deepcopy(network)
    for module in bare.modules():
        module._forward_hooks.clear()
    assert torch.equal(network(x), bare(x))
    assert not torch.equal(plain.network.eval()(x), network(x))


def test_a_training_without_it_is_what_it_was():
    unused = DropBlockConfig(keep_prob=0.5)
    one, other = start(tiny(ALS)), start(tiny(replace(ALS, drop_block=unused)))
    for run in (one, other):
        run.run_epoch()
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_the_step_is_one_graph_with_it():
    torch._dynamo.reset()
    run = start(tiny(replace(PAPER, drop_block=replace(LATE, start_keep_prob=0.5))))
    for hook in run.step.hooks:
        hook.start_epoch(0)
    traced = torch.compile(run.step.objective, fullgraph=True, backend="eager", dynamic=False)
    found = []
    for objective in (run.step.objective, traced):
        torch.manual_seed(0)
        found.append(objective(run.network, *batch(8), None))
    torch.testing.assert_close(*found)


def test_a_captured_step_counts_on(monkeypatch):
    """On a CPU with a stand-in for the graph; warming up leaves the count as it was."""
    monkeypatch.setattr(captured, "warm_up", lambda body: [body() for _ in range(3)])
    monkeypatch.setattr(captured, "capture", lambda body, _: body)
    recipe = replace(Recipe("c_efficientnet_3.0", width_mult=0.1), drop_block=LATE)
    network = build(recipe.model, width_mult=0.1).train()
    hook = DropBlock(network, LATE, 10)
    hook.start_epoch(0)
    step = CapturedStep(Step(network, recipe, hooks=[hook]), compiled=False)
    for _ in range(3):
        step(*batch(8), None, 0.01)
    assert float(hook.drop_prob) == pytest.approx(0.5 * 3 / 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_gpu_draws_anew_at_every_replay():
    x = torch.ones(4, 64, 8, 8, device="cuda")
    found = torch.zeros_like(x)

    def body() -> None:
        found.copy_(drop_block(x, 0.3, 3))

    captured.warm_up(body)
    replay = captured.capture(body, None)
    drawn = []
    for _ in range(2):
        replay()
        drawn.append(found.clone())
    assert not torch.equal(*drawn)
