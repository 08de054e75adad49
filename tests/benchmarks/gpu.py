"""A training step on a GPU: the usual pipeline, ours eager and captured, and the card's ceilings.

    PYTHONPATH=tests python tests/benchmarks/gpu.py [PART ...] [--device cpu --batch 8]

prints what CONTRIBUTING's table of speeds holds; medians, one card, the recipe's batch size. On a
CPU it only shows that the script runs.
"""

import argparse
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from pillow_pipeline import pillow_pipeline
from plain_step import PlainStep
from ratios import compare
from small_networks import seeded
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Dataset

from micronet_lib.architecture import ARCHITECTURES, build
from micronet_lib.augmentation.mixing import MixDraw, draw_mix
from micronet_lib.augmentation.policies import uniform_policies
from micronet_lib.lab.data.images import ImageSet, load_split
from micronet_lib.lab.host.machine import set_up
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.training.captured import CapturedStep
from micronet_lib.lab.training.loop import Run, TrainingData
from micronet_lib.lab.training.step import Step
from micronet_lib.label_smoothing import RELEASED_DENSE
from micronet_lib.srip.penalty import srip_weights

MODEL = PAPER.model
KERNELS = {  # by what their names hold, the first that fits; inductor's tell what they fuse
    "batch norm, activation, fused": ("triton", "batch_norm", "bn_", "hardsw", "elementwise"),
    "depthwise convolution": ("depthwise", "dgrad2d_c1", "wgrad2d_c1", "conv2d_c1", "group"),
    "SRIP and other small matrices": ("bmm", "batched", "gemv", "gemmk1"),
    "pointwise convolution, linear": ("gemm", "conv", "cudnn", "cutlass", "xmma", "sm80", "sm90"),
    "optimiser and masks": ("multi_tensor", "fused_sgd", "foreach"),
    "copies and fills": ("copy", "memcpy", "memset", "fill", "cat"),
}


def seconds(way: Callable[[], object], device: str) -> float:
    """Mean of a launch, after one that sets things up; Timer waits for the GPU at the end."""
    way()
    return Timer("way()", globals={"way": way}).timeit(20 if device == "cuda" else 1).mean


def precise(recipe: Recipe, precision: str, batch: int) -> Recipe:
    train = replace(recipe.train, precision=precision, batch_size=batch)
    return replace(recipe, train=train)


def inputs(device: str, batch: int) -> tuple[Tensor, Tensor, MixDraw]:
    part = load_split("embedded", "train").subset(torch.arange(batch))
    return (
        part.images.to(device),
        part.targets.to(device),
        draw_mix("cutmix", batch, seeded(0), device),
    )


def step_of(recipe: Recipe, device: str) -> Step:
    model = fresh_network(recipe, 0).to(device).to(memory_format=torch.channels_last)
    return Step(model.train(), recipe, torch.Generator(device).manual_seed(0))


def ceilings(device: str, batch: int) -> None:
    """What no kernel of this card beats: copied bytes, read and written, and bfloat16 products."""
    mega, side = (1024, 8192) if device == "cuda" else (8, 256)
    source = torch.empty(mega * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * len(source) / seconds(lambda: target.copy_(source), device)
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    products = 2 * side**3 / seconds(lambda: left @ right, device)
    print(f"  copy {rate / 1e12:.2f} TB/s, bfloat16 matrix product {products / 1e12:.0f} TFLOP/s")


def depthwise_convolutions(device: str, batch: int) -> None:
    """The likely hot spot: microseconds forward, for the images' gradient, for the weights'."""
    configs = {
        (c.hidden_chs, size, c.stride): None for c, size in _sizes(ARCHITECTURES[MODEL].blocks)
    }
    print("  channels  size  stride  type      layout         forward  d images  d weights   [us]")
    for chs, size, stride in configs:
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(batch, chs, size, size, device=device, dtype=dtype)
                x = x.contiguous(memory_format=layout)
                w = torch.randn(chs, 1, 3, 3, device=device, dtype=dtype)
                forward = partial(F.conv2d, x, w, None, stride, 1, 1, chs)
                gradient = torch.randn_like(forward())
                backward = partial(
                    *(torch.ops.aten.convolution_backward, gradient, x, w, None),
                    *([stride] * 2, [1, 1], [1, 1], False, [0, 0], chs),
                )
                masks = ([True, False, False], [False, True, False])
                ways = [forward, *(partial(backward, mask) for mask in masks)]
                times = [seconds(way, device) for way in ways]
                name = "NHWC" if layout == torch.channels_last else "NCHW"
                told = "".join(f"{1e6 * t:11.1f}" for t in times)
                print(f"  {chs:8} {size:5} {stride:7}  {dtype!s:15} {name:6}{told}")


def _sizes(blocks: list) -> Iterator[tuple]:
    size = 32
    for config in blocks:
        yield config, size
        size //= config.stride


class PillowImages(Dataset):
    """Images augmented one by one, as a worker process does it."""

    def __init__(self, data: ImageSet) -> None:
        self.arrays = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = data.targets.tolist()
        self.transform = pillow_pipeline(uniform_policies(seeded(0), 500))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.targets[index]


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def training_step(device: str, batch: int) -> None:
    """The plain loop with its loader, and the library's step in its forms."""
    repeats, rounds = (60, 5) if device == "cuda" else (1, 1)
    random.seed(0)
    recipe = replace(RELEASED, model=MODEL, smoothing=RELEASED_DENSE)
    theirs = PlainStep(build(MODEL).to(device), recipe)
    weights = srip_weights(theirs.model, "pointwise")
    workers = min(16, os.cpu_count() or 1)
    loader = DataLoader(
        PillowImages(load_split("embedded", "train")),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device == "cuda",
        persistent_workers=True,
        prefetch_factor=1,
    )
    batches = endless(loader)

    def plain() -> None:
        images, targets = (part.to(device, non_blocking=True) for part in next(batches))
        starts = {name: torch.randn(w.shape[1], device=device) for name, w in weights.items()}
        theirs(images, targets, draw_mix("cutmix", batch, seeded(0), device), starts)

    given = inputs(device, batch)
    generator = torch.Generator(device).manual_seed(1)
    ways: dict[str, Callable[[], object]] = {f"plain, eager, {workers} Pillow workers": plain}
    for precision in ("fp32", "bf16"):
        for how in ("eager", "captured", "compiled and captured"):
            step = step_of(precise(recipe, precision, batch), device)
            call = step if how == "eager" else CapturedStep(step, "compiled" in how)
            call(*given, 0.1, generator)
            label = f"library, {precision}, {how}"
            done = getattr(call, "how", how)
            label += f" (refused: {done})" * (done != how)
            ways[label] = lambda call=call: call(*given, 0.1, generator)
    compare(ways, batch, "images", rounds, repeats)


def whole_epochs(device: str, batch: int) -> None:
    """Images a second of `Run`, with augmentation, mixing and all; the first epoch sets up."""
    data = load_split("embedded", "train")
    copies, epochs = 10, 4
    if device == "cpu":
        data, copies, epochs = data.subset(torch.arange(batch)), 1, 2
    many = ImageSet(*(part.repeat(copies, *[1] * (part.ndim - 1)) for part in vars(data).values()))
    validation = load_split("embedded", "validation").to(device)
    policies = uniform_policies(seeded(0), 500)
    for precision in ("fp32", "bf16"):
        recipe = precise(PAPER, precision, batch)
        model = fresh_network(recipe, 0).to(device)
        run = Run(model, recipe, TrainingData(many.to(device), validation, None, policies), 0)
        run.run_epoch()
        run.seconds = 0.0
        for _ in range(epochs - 1):
            run.run_epoch()
        rate = (epochs - 1) * run.steps * batch / run.seconds
        how = getattr(run.take_step, "how", "eager")
        print(f"  {precision}, {how:24} {rate:10.0f} images/s")


def kernel_groups(device: str, batch: int) -> None:
    """Where the time of a captured step goes, by the names of its kernels."""
    steps = 20 if device == "cuda" else 1
    step = step_of(precise(PAPER, "bf16", batch), device)
    call = CapturedStep(step, compiled=True)
    given, generator = inputs(device, batch), torch.Generator(device).manual_seed(1)
    call(*given, 0.1, generator)
    kinds = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    with profile(activities=kinds) as profiled:
        for _ in range(steps):
            call(*given, 0.1, generator)
        if device == "cuda":
            torch.cuda.synchronize()
    groups = dict.fromkeys([*KERNELS, "other"], 0.0)
    counts = dict.fromkeys(groups, 0)
    longest: dict[str, float] = {}
    for event in profiled.events():
        if device == "cuda" and event.device_type != DeviceType.CUDA:
            continue  # of the host: it launches and waits
        name, took = event.name, event.time_range.elapsed_us()
        low = name.lower()
        found = [group for group, words in KERNELS.items() if any(word in low for word in words)]
        group = found[0] if found else "other"
        groups[group] += took
        counts[group] += 1
        longest[name] = longest.get(name, 0.0) + took
    total, launches = sum(groups.values()), sum(counts.values())
    print(f"  {total / steps:.0f} us of kernels a step, {launches / steps:.0f} launches")
    for group, took in groups.items():
        share, number = took / total, counts[group] / steps
        print(f"  {group:32} {share:6.1%} {took / steps:8.0f} us {number:6.0f} launches")
    for name in sorted(longest, key=longest.__getitem__, reverse=True)[:25]:
        print(f"    {longest[name] / steps:8.0f} us  {name[:110]}")


PARTS = {
    part.__name__: part
    for part in (ceilings, depthwise_convolutions, training_step, whole_epochs, kernel_groups)
}


def main() -> None:
    """Run the parts asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=PAPER.train.batch_size)
    args = parser.parse_args()
    set_up(torch.device(args.device))
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, batch {args.batch}")
    for name in args.parts or PARTS:
        print(f"\n{name}: {PARTS[name].__doc__.partition(chr(10))[0]}", flush=True)
        PARTS[name](args.device, args.batch)


if __name__ == "__main__":
    main()
