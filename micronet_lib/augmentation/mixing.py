"""Images mixed in pairs: CutMix [yun2019] and mixup [zhang2017].

    CutMix  image = M * image_a + (1 - M) * image_b      M: 0 inside a box, 1 elsewhere
    mixup   image = lam * image_a + (1 - lam) * image_b
    both    loss  = lam * loss(targets_a) + (1 - lam) * loss(targets_b)

`cutmix` and `mixup` pair a batch with itself, shuffled. The two ways of [lee2020assembled] have a
weight for every image: `mixup_two_batches` (its type 1) loads twice as many images and mixes them
in pairs, and `mixup_one_batch` (type 2) pairs the first half of a batch with the second half, once
in order and once in reverse.

Otherwise one weight `lam` for each batch, drawn from Beta(alpha, alpha). CutMix uses one box of
area `1 - lam`, clips it at the image's border, and sets `lam` to the area outside the box, as the
authors' code does. [kim2020, section 4] says the box is "filled with 0" and "lambda to 1.0". Its
formula and its code fill the box from the partner, and the 1.0 is alpha.

We do not use `torchvision.transforms.v2.CutMix` and `MixUp`, although the definitions are theirs.
They draw from the global generator, pair only neighbours, and fix the box in Python numbers, which
a CUDA graph would repeat. They also return blended one-hot labels, but smoothing by class needs
both classes. The tests compare with them. Chapter `04_augmentation`.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from micronet_lib.augmentation.image_ops import SIZE
from micronet_lib.errors import InputError, check_choice


class MixDraw(NamedTuple):
    """The random decisions for one batch of N images.

    Attributes:
        lam: float32, the weight of each image's own target: a scalar, or [N] for a weight each.
        box: int64 [4], left, top, right and bottom of the partner's box, right and bottom excluded;
            None for mixup.
        permutation: int64 [N], each image's partner.
        own: int64 [N], which of the loaded images each mixed one comes from; None for the first N
            in order.
    """

    lam: Tensor
    box: Tensor | None
    permutation: Tensor
    own: Tensor | None = None


class MixedBatch(NamedTuple):
    """A mixed batch.

    Attributes:
        images: [N,3,H,W], in the type of the inputs.
        targets_a: int64 [N], the images' own targets, of weight `lam`.
        targets_b: int64 [N], their partners', of weight `1 - lam`.
        lam: float32, a scalar or [N].
    """

    images: Tensor
    targets_a: Tensor
    targets_b: Tensor
    lam: Tensor


MixKind = Literal["none", "cutmix", "mixup", "mixup_two_batches", "mixup_one_batch"]
KINDS = get_args(MixKind)[1:]


def images_per_mix(kind: str) -> int:
    """Return how many images are loaded for each mixed one."""
    return 2 if kind == "mixup_two_batches" else 1


def draw_mix(
    kind: MixKind,
    num_images: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    *,
    alpha: float = 1.0,
    prob: float = 1.0,
) -> MixDraw:
    """Draw how one batch of 32 x 32 images is mixed.

    Args:
        kind: one of `KINDS`.
        num_images: N, of the mixed batch. `mixup_two_batches` mixes 2 N images to N.
        generator: random numbers, on the CPU, so that every machine draws the same.
        device: of the returned tensors.
        alpha: of Beta(alpha, alpha); 1 is uniform, less prefers weights near 0 and 1.
        prob: probability of mixing; otherwise `lam` is 1 and the box is empty.

    Raises:
        InputError: unknown kind, `alpha` not above 0, `prob` outside [0, 1], or an odd batch that
            is mixed half with half.
    """
    check_choice("mix", kind, KINDS)
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}: give a number above 0")
    if not 0 <= prob <= 1:
        raise InputError(f"prob is {prob}: give a fraction from 0 to 1")
    if kind in ("mixup_two_batches", "mixup_one_batch"):
        return _draw_pairs(kind, num_images, generator, device, alpha, prob)
    permutation = torch.randperm(num_images, generator=generator)
    # PyTorch's Beta distribution takes no generator.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    lam = rng.beta(alpha, alpha)
    column, row = rng.integers(SIZE), rng.integers(SIZE)
    if rng.random() >= prob:
        lam = 1.0
    box = None
    if kind == "cutmix":
        box, lam = cut_box(lam, (int(column), int(row)))
    weight = torch.tensor(lam, dtype=torch.float32)
    corners = None if box is None else torch.tensor(box).to(device)
    return MixDraw(weight.to(device), corners, permutation.to(device))


def _draw_pairs(
    kind: MixKind,
    num_images: int,
    generator: torch.Generator,
    device: torch.device | str,
    alpha: float,
    prob: float,
) -> MixDraw:
    """Draw a weight for every image; the pairs are fixed, since the images come in random order."""
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    lam = torch.tensor(rng.beta(alpha, alpha, num_images), dtype=torch.float32)
    mixed = rng.random() < prob
    if not mixed:
        lam = torch.ones_like(lam)
    if kind == "mixup_two_batches":
        return MixDraw(lam.to(device), None, torch.arange(num_images, 2 * num_images).to(device))
    if num_images % 2:
        raise InputError(f"mixup_one_batch mixes half with half: {num_images} images are odd")
    first, second = torch.arange(num_images).chunk(2)
    own, partners = first.repeat(2), torch.cat([second, second.flip(0)])
    if not mixed:  # every image once
        own = partners = torch.arange(num_images)
    return MixDraw(lam.to(device), None, partners.to(device), own.to(device))


def cut_box(
    lam: float, centre: tuple[int, int], size: tuple[int, int] = (SIZE, SIZE)
) -> tuple[tuple[int, int, int, int], float]:
    """Return the box of CutMix, and the weight of the image after clipping at the border.

    Args:
        lam: share of the image outside the box, before clipping.
        centre: column and row.
        size: height and width of the image.

    Returns:
        left, top, right and bottom, the last two excluded; 1 - area / (height * width).
    """
    height, width = size
    half_width, half_height = (int(side * math.sqrt(1 - lam)) // 2 for side in (width, height))
    left, right = max(0, centre[0] - half_width), min(width, centre[0] + half_width)
    top, bottom = max(0, centre[1] - half_height), min(height, centre[1] + half_height)
    kept = 1 - (right - left) * (bottom - top) / (height * width)
    return (left, top, right, bottom), kept


def mix(images: Tensor, targets: Tensor, draw: MixDraw) -> MixedBatch:
    """Mix each image with its partner.

    The same kernels run whatever was drawn, and nothing waits for the device. So a CUDA graph can
    replay it with new numbers in the tensors of `draw`.

    Args:
        images: [N,C,H,W], of any type for CutMix, floats for mixup; [2N,C,H,W] where two batches
            become one.
        targets: [N], or [2N].
        draw: for N mixed images of this size, on the same device.

    Raises:
        InputError: mixup of integers, or another number of images or targets.
    """
    _check_number(images, "images", draw)
    _check_number(targets, "targets", draw)
    partners, partners_targets = images[draw.permutation], targets[draw.permutation]
    images, targets = _own(images, draw), _own(targets, draw)
    if draw.box is not None:
        mixed = torch.where(_inside(draw.box, images), partners, images)
    elif images.is_floating_point():
        lam = draw.lam.to(images.dtype)
        mixed = torch.lerp(partners, images, lam.view(-1, 1, 1, 1) if lam.ndim else lam)
    else:
        raise InputError(f"mixup blends images, which are {images.dtype}: normalise them first")
    return MixedBatch(mixed, targets, partners_targets, draw.lam)


def mix_rows(rows: Tensor, draw: MixDraw) -> Tensor:
    """Mix what belongs to the images, such as a teacher's probabilities, with the same weights.

    Args:
        rows: floats [N,C], one row for each loaded image; [2N,C] where two batches become one.
        draw: for N mixed images.

    Returns:
        [N,C].

    Raises:
        InputError: another number of rows.
    """
    _check_number(rows, "rows", draw)
    lam = draw.lam.to(rows.dtype)
    weight = lam.unsqueeze(-1) if lam.ndim else lam
    return torch.lerp(rows[draw.permutation], _own(rows, draw), weight)


def _check_number(loaded: Tensor, what: str, draw: MixDraw) -> None:
    """Raise an error unless a draw is for so many loaded images.

    The shapes of the draw say for how many: its values may be on a GPU, which nothing waits for.
    A weight for each image, and no places of the images' own, are a draw for two batches.
    """
    num = len(draw.permutation)
    expected = 2 * num if draw.lam.ndim and draw.own is None else num
    if len(loaded) != expected:
        raise InputError(f"{len(loaded)} {what}, but a draw for {expected}")


def _own(loaded: Tensor, draw: MixDraw) -> Tensor:
    """Return the images that are mixed with their partners, or what belongs to them."""
    return loaded[: len(draw.permutation)] if draw.own is None else loaded[draw.own]


def _inside(box: Tensor, images: Tensor) -> Tensor:
    """Return which pixels the box covers, bool [H,W]."""
    left, top, right, bottom = box.unbind()
    column = torch.arange(images.shape[-1], device=images.device)
    row = torch.arange(images.shape[-2], device=images.device).unsqueeze(1)
    return (column >= left) & (column < right) & (row >= top) & (row < bottom)
