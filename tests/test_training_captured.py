"""Captured work is the eager work: on a CPU with a stand-in for the graph, on a GPU with one."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_networks import seeded, single_thread
from test_training_loop import images, start, tiny
from test_training_step import RECIPE, batch, narrow

from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.architecture import ARCHITECTURES, build
from micronet_lib.assembled_cnn.retrieval import Embed
from micronet_lib.augmentation.mixing import draw_mix, images_per_mix
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.beyond.changes import Quantize
from micronet_lib.distillation import DistillationConfig
from micronet_lib.early_exit import AddExit
from micronet_lib.errors import InputError
from micronet_lib.hooks import Change
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.host.machine import set_up
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.training import captured
from micronet_lib.lab.training.captured import (
    CapturedStep,
    CapturedTop1,
    fastest_step,
    fastest_top1,
)
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.lab.training.hooks import WeightAverage
from micronet_lib.lab.training.loop import Run
from micronet_lib.lab.training.step import Step
from micronet_lib.pruning.masks import HeldMasks, magnitude_masks, prunable_weights
from micronet_lib.srip.penalty import SripConfig
from micronet_lib.ternary import Ternarize

MIXES = ("none", "cutmix", "mixup", "mixup_two_batches")


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


@pytest.fixture
def stand_in(monkeypatch):
    """On a CPU: warming up runs the body, and a replay is the body on the same tensors."""

    def warm_up(body: Callable[[], None]) -> None:
        for _ in range(captured.WARM_UP):
            body()

    monkeypatch.setattr(captured, "warm_up", warm_up)
    monkeypatch.setattr(captured, "capture", lambda body, _: body)


def recipe_of(mix: str, start: str = "fresh") -> Recipe:
    return replace(
        RECIPE,
        augment=AugmentConfig(mix=mix),
        srip=replace(RECIPE.srip, start=start),
    )


def take(step: Step, how: Callable, mix: str, num: int = 3) -> list[torch.Tensor]:
    """Some steps with other images, mixes and learning rates each; what they end in."""
    on_device = torch.Generator(step.device).manual_seed(7)
    torch.manual_seed(3)
    for number in range(num):
        pixels, targets = (part.to(step.device) for part in batch())
        pixels = pixels.roll(number, 0)
        num = len(pixels) // images_per_mix(mix)
        draw = None if mix == "none" else draw_mix(mix, num, seeded(number), step.device)
        how(pixels, targets, draw, 0.1 / (1 + number), on_device)
    remembered = [value for each in step.optimizer.state.values() for value in each.values()]
    averages = [hook.network for hook in step.hooks if isinstance(hook, WeightAverage)]
    networks = [value for each in (step.network, *averages) for value in each.state_dict().values()]
    return [*networks, step.loss, step.penalty, *remembered]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], **within: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **within)


def pruned_step(recipe: Recipe, device: str = "cpu", teacher: bool = False) -> Step:
    """With dropout, masks, an average and perhaps a teacher."""
    model = narrow(dropout=0.3).to(device)
    masks = HeldMasks(model, magnitude_masks(prunable_weights(model), 0.5))
    generator = torch.Generator(device).manual_seed(5)
    learned_from = narrow(0.5).to(device).eval() if teacher else None
    return Step(model, recipe, generator, [masks, WeightAverage(model, 0.9)], learned_from)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("srip_start", ["fresh", "warm"])
def test_what_is_replayed_is_the_step(stand_in, mix, srip_start):
    """Warming up leaves no trace; every replay sees new images, mix, rate and start vectors."""
    recipe = recipe_of(mix, srip_start)
    eager, other = pruned_step(recipe), pruned_step(recipe)
    expected = take(eager, eager, mix)
    found = take(other, CapturedStep(other, compiled=False), mix)
    assert_same(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_another_optimiser_and_a_teacher_are_replayed_too(stand_in, optimizer):
    train = replace(RECIPE.train, optimizer=optimizer, lr_factors={"head.*": 0.5})
    recipe = replace(recipe_of("cutmix"), train=train, distillation=DistillationConfig(0.5, 2.0))
    eager, other = (pruned_step(recipe, teacher=True) for _ in range(2))
    expected = take(eager, eager, "cutmix")
    found = take(other, CapturedStep(other, compiled=False), "cutmix")
    assert_same(found, expected, rtol=1e-5, atol=1e-7)


def test_a_capture_in_the_middle_of_a_run_keeps_its_momentum(stand_in):
    eager, other = (Step(narrow(), recipe_of("cutmix"), seeded(5)) for _ in range(2))
    take(eager, eager, "cutmix")
    take(other, other, "cutmix")
    expected = take(eager, eager, "cutmix")
    found = take(other, CapturedStep(other, compiled=False), "cutmix")
    assert_same(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mix", MIXES)
def test_forward_and_loss_compile_to_one_graph_of_fixed_shapes(mix):
    """`fullgraph` refuses what depends on data; the backward pass is traced along."""
    stages = [replace(stage, num_blocks=1) for stage in ARCHITECTURES[RECIPE.model].stages[:3]]
    results = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        model = build(RECIPE.model, stages=[vars(stage) for stage in stages], width_mult=0.25)
        step = Step(model.train().to(memory_format=torch.channels_last), recipe_of(mix))
        if backend:
            step.loss_of = torch.compile(
                step.loss_of, fullgraph=True, dynamic=False, backend=backend
            )
        results.append(take(step, step, mix, num=2))
    assert_same(*results, rtol=1e-4, atol=1e-4)


def refuse(body: Callable[[], None]) -> None:
    body()
    raise RuntimeError("no graphs today\nand a long story")


def test_a_step_that_cannot_be_captured_goes_on_eager_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(captured, "warm_up", refuse)
    monkeypatch.setattr(captured, "_compile", lambda loss_of: loss_of)
    eager, other = (Step(narrow(), recipe_of("cutmix"), seeded(5)) for _ in range(2))
    expected = take(eager, eager, "cutmix")
    fast = CapturedStep(other, compiled=True)
    found = take(other, fast, "cutmix")
    assert all(map(torch.equal, found, expected))
    assert fast.how == "eager"
    compiled, plain = capsys.readouterr().err.splitlines()
    assert "compiled and captured (no graphs today)" in compiled
    assert "captured (no graphs today)" in plain


def test_a_cpu_takes_the_step_itself():
    step = Step(narrow(), RECIPE)
    assert fastest_step(step, 10**6) is step
    model, data = narrow().eval(), images(30, 1)
    assert fastest_top1(model, data)() == evaluate(model, data).top1


@pytest.mark.parametrize(
    ("changes", "captures"),
    [
        ([], True),
        ([AddExit("blocks.4", 8)], True),
        ([Ternarize()], True),
        ([Quantize()], False),
        ([Quantize(), AddExit("blocks.4", 8)], False),
        ([Quantize(), Embed("gem")], False),
        ([Adjust()], False),
    ],
)
def test_a_network_that_waits_for_the_device_is_not_captured(monkeypatch, changes, captures):
    pixels = batch()[0]
    network = build("micronet_v1", width_mult=0.25)
    for change in changes:
        network = change.apply(network, normalize(pixels))
    on_a_gpu = torch.device("cuda")
    step = Step(network.train(), replace(RECIPE, srip=SripConfig(coef=0.0)))
    step.device = on_a_gpu
    assert isinstance(fastest_step(step, 10), CapturedStep) == captures
    monkeypatch.setattr(captured, "CapturedTop1", lambda *_: "captured")
    data = SimpleNamespace(images=SimpleNamespace(device=on_a_gpu))
    assert (fastest_top1(network, data) == "captured") == captures


def test_captured_top1_follows_the_weights(stand_in):
    model, data = narrow(), images(30, 1)
    top1 = CapturedTop1(model, data)
    first = top1()
    assert first == evaluate(model, data).top1
    with torch.no_grad():
        model.classifier.bias[3] += 1e3
    assert top1() == evaluate(model, data).top1 == 0.1
    with torch.no_grad():
        model.classifier.bias[3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        top1()


def test_rating_that_cannot_be_captured_goes_on_without_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(captured, "warm_up", refuse)
    model, data = narrow(), images(30, 1)
    top1 = CapturedTop1(model, data)
    assert top1() == top1() == evaluate(model, data).top1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(no graphs today)" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("base", [PAPER, RELEASED], ids=["paper", "released"])
def test_on_a_gpu_the_captured_step_is_the_eager_one(mix, compiled, base):
    set_up(torch.device("cuda"))
    recipe = replace(base, augment=AugmentConfig(mix=mix), model=RECIPE.model)
    eager, other = pruned_step(recipe, "cuda"), pruned_step(recipe, "cuda")
    fast = CapturedStep(other, compiled)
    # The compiler rounds otherwise, and a ReLU near 0 may let a gradient through in one of them
    # only: a difference that grows at every step.
    num = 1 if compiled else 3
    expected, found = take(eager, eager, mix, num), take(other, fast, mix, num)
    assert fast.how == ("compiled and captured" if compiled else "captured")
    if compiled:
        ours, theirs = (
            torch.cat(
                [state["momentum_buffer"].flatten() for state in step.optimizer.state.values()]
            )
            for step in (other, eager)
        )
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()
    else:
        assert_same(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_on_a_gpu_another_optimiser_and_a_teacher_are_captured_too(optimizer):
    set_up(torch.device("cuda"))
    train = replace(PAPER.train, optimizer=optimizer, lr=0.01, lr_factors={"head.*": 0.5})
    recipe = replace(PAPER, train=train, distillation=DistillationConfig(0.5, 2.0))
    eager, other = (pruned_step(recipe, "cuda", teacher=True) for _ in range(2))
    fast = CapturedStep(other, compiled=False)
    expected, found = take(eager, eager, "cutmix"), take(other, fast, "cutmix")
    assert fast.how == "captured"
    assert eager.loss.item() == pytest.approx(other.loss.item(), rel=2e-3)
    assert all(each.isfinite().all() for each in (*expected, *found))


def changed_step(change: Change, device: str) -> Step:
    """Of a network with layers that a change has put in, with that change's hooks."""
    pixels = normalize(batch()[0])
    torch.manual_seed(0)
    network = change.apply(build("micronet_v1", width_mult=0.25), pixels)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    recipe = replace(recipe_of("cutmix"), srip=SripConfig(coef=0.0))
    return Step(network, recipe, hooks=change.hooks(network))


@pytest.mark.parametrize("change", [Ternarize(), Ternarize("entropy"), Ternarize("fixed")])
def test_ternary_layers_are_replayed_too(stand_in, change):
    eager, other = changed_step(change, "cpu"), changed_step(change, "cpu")
    assert_same(
        take(other, CapturedStep(other, compiled=False), "cutmix"),
        take(eager, eager, "cutmix"),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("change", [Ternarize(), Ternarize("entropy"), Ternarize("fixed")])
def test_on_a_gpu_ternary_layers_are_captured(change):
    step = changed_step(change, "cuda")
    fast = CapturedStep(step, compiled=False)
    assert all(each.isfinite().all() for each in take(step, fast, "cutmix"))
    assert fast.how == "captured"


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("target", [None, 0.002])
def test_adjustable_layers_learn_where_the_network_is(device, target):
    step = changed_step(Adjust(5, 5, target=target), device)
    found = take(step, step, "cutmix", num=1)
    assert all(each.isfinite().all() for each in found)
    assert step.network.eval()(normalize(batch()[0]).to(device)).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_capture_that_breaks_off_goes_on_eager(capsys):
    """Whatever waits for the host ends a capture; dropout and SRIP draw on after it."""
    step = Step(narrow(dropout=0.3).cuda(), recipe_of("cutmix"))
    honest = step.loss_of

    def waits(*given):
        loss = honest(*given)
        loss.item()
        return loss

    step.loss_of = waits
    fast = CapturedStep(step, compiled=False)
    assert all(tensor.isfinite().all() for tensor in take(step, fast, "cutmix"))
    assert fast.how == "eager"
    assert "going on eager" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_run_trains_captured_and_rates_captured():
    set_up(torch.device("cuda"))
    recipe = tiny(replace(PAPER, srip=SripConfig()), epochs=2)
    eager, fast = start(recipe), start(recipe)
    data = replace(
        fast.data,
        train=fast.data.train.to("cuda"),
        validation=fast.data.validation.to("cuda"),
        test=None,
    )
    on_gpu = Run(fast.network.cuda(), recipe, data, 0)
    for _ in range(2):
        eager.run_epoch()
        on_gpu.run_epoch()
    assert isinstance(on_gpu.take_step, CapturedStep)
    assert on_gpu.take_step.how == "captured"
    assert on_gpu.curve["train_loss"] == pytest.approx(eager.curve["train_loss"], rel=0.02)
    assert on_gpu.ratings["validation_top1"]() == evaluate(on_gpu.rated, data.validation).top1
