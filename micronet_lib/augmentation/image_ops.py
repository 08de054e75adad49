"""The image operations of Fast AutoAugment [lim2019] on batches, equal to Pillow to the last bit.

Images are uint8 `[N, 3, 32, 32]`; values are float64 `[N]`, one for each image. There are four
types of operation: geometry (a matrix says where each pixel comes from, for `resample`), tone (a
table maps each level, for `look_up`), blend (mix with another version of the image), and cutout
(paint a square). `augmentation.policies` draws operations and values; chapter `04_augmentation`
shows them.

Shapes are static and nothing is copied between devices, so a CUDA graph can capture it all.
Equality to the last bit requires that `a + b * c` is rounded twice, as in PyTorch's kernels and
Pillow on x86-64. A compiler that fuses the two steps can shift a blended level by one.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from micronet_lib.errors import unknown

SIZE = 32
NUM_PIXELS = SIZE * SIZE
NUM_LEVELS = 256
CROP_PADDING = 4
CROP_FILL = 128
CUTOUT_COLOUR = (125, 123, 114)


def shear_x(values: Tensor) -> Tensor:
    """Return matrices [N,6] that shift rows by `value` times their distance from the top."""
    return _fixed_point(values, (1, values, 0, 0, 1, 0))


def shear_y(values: Tensor) -> Tensor:
    """Return matrices [N,6] that shift columns by `value` times their distance from the left."""
    return _fixed_point(values, (1, 0, 0, values, 1, 0))


def translate_x(values: Tensor) -> Tensor:
    """Return matrices [N,6] that take every pixel from `value` image widths further right.

    Without shear Pillow truncates `value * 32 + 0.5 + x` in floating point, which moves by whole
    pixels. (It adds up x in steps of 1. The rounding of those sums matters only within 1e-14 of the
    next pixel and is not reproduced.)
    """
    whole_pixels = torch.floor(values * SIZE + 0.5)
    return _fixed_point(values, (1, 0, whole_pixels, 0, 1, 0))


def translate_y(values: Tensor) -> Tensor:
    """Return matrices [N,6] that take every pixel from `value` image heights further down."""
    whole_pixels = torch.floor(values * SIZE + 0.5)
    return _fixed_point(values, (1, 0, 0, 0, 1, whole_pixels))


def rotate(values: Tensor) -> Tensor:
    """Return matrices [N,6] that turn the image by `value` degrees anticlockwise about its centre.

    Pillow rounds sine and cosine to 15 decimals, then the matrix to 16 bits. Only the second
    rounding is coarse enough to matter.
    """
    angles = values * -(math.pi / 180)
    cos, sin = torch.cos(angles), torch.sin(angles)
    centre = SIZE / 2
    to_x = cos * -centre + sin * -centre + centre
    to_y = -sin * -centre + cos * -centre + centre
    return _fixed_point(values, (cos, sin, to_x, -sin, cos, to_y))


def _fixed_point(values: Tensor, matrix: tuple[Tensor | float, ...]) -> Tensor:
    """Return Pillow's matrix (a, b, c, d, e, f) in int32; each entry is a number or float64 [N].

    Pixel (x, y) comes from (a x + b y + c, d x + e y + f). Coordinates are those of pixel centres,
    hence the halves. Pillow uses 16 fractional bits.
    """
    a, b, c, d, e, f = matrix
    numbers = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    columns = [n if isinstance(n, Tensor) else torch.full_like(values, n) for n in numbers]
    return torch.floor(torch.stack(columns, 1) * 65536 + 0.5).to(torch.int32)


def resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel from where its image's matrix says: nearest neighbour, black outside.

    Matrices are int32 [N,6], from one of the geometry functions above.
    """
    a, b, c, d, e, f = (column.view(-1, 1, 1) for column in matrices.unbind(1))
    x = torch.arange(SIZE, dtype=torch.int32, device=images.device)
    y = x.view(-1, 1)
    # One black pixel on each side stands for everything outside.
    column = ((a * x + b * y + c) >> 16).clamp_(-1, SIZE) + 1
    row = ((d * x + e * y + f) >> 16).clamp_(-1, SIZE) + 1
    return _take(F.pad(images, (1, 1, 1, 1)), row * (SIZE + 2) + column)


def _take(padded: Tensor, source: Tensor) -> Tensor:
    """Gather pixels: uint8 [N,3,M,M] at int32 [N,32,32] places in 0 .. M * M - 1."""
    index = source.long().flatten(1).unsqueeze(1).expand(-1, 3, -1)
    return torch.gather(padded.flatten(2), 2, index).unflatten(2, (SIZE, SIZE))


def auto_contrast(images: Tensor, _values: Tensor) -> Tensor:
    """Return tables [N,3,256] that stretch the levels of each channel to the full range.

    Pillow computes `255 / (high - low)` and truncates `level * scale - low * scale`, which can turn
    the highest level into 254. The quotient must be the same double. PyTorch computes `255.0 /
    tensor` as 255 times the reciprocal, which shifts levels in 41 % of CIFAR-100's test images. It
    divides a tensor of 255s exactly.
    """
    levels = _levels(images).double()
    low, high = (bound.double().unsqueeze(2) for bound in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(high, 255.0) / (high - low).clamp_min(1)
    stretched = (levels * scale - low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, levels).to(torch.uint8)


def invert(images: Tensor, _values: Tensor) -> Tensor:
    """Return tables [N,3,256] of `255 - level`."""
    return (255 - _levels(images)).to(torch.uint8).expand(len(images), 3, -1)


def equalize(images: Tensor, _values: Tensor) -> Tensor:
    """Return tables [N,3,256] that spread the levels of each channel evenly, by their histogram.

    Like Pillow, the step width leaves out the highest level, and a channel with step 0 is
    unchanged.
    """
    pixels = images.flatten(2)
    highest = pixels.amax(2, keepdim=True)
    step = (NUM_PIXELS - (pixels == highest).sum(2, keepdim=True)) // 255
    counts = torch.zeros(len(images), 3, NUM_LEVELS, dtype=torch.int64, device=images.device)
    index = pixels.long()
    counts.scatter_add_(2, index, torch.ones_like(index))
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, spread, _levels(images)).to(torch.uint8)


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Return tables [N,3,256] that invert the levels from `value` on; 256 changes nothing."""
    levels = _levels(images)
    table = torch.where(levels < values.view(-1, 1, 1), levels, 255 - levels)
    return table.to(torch.uint8).expand(-1, 3, -1)


def posterize(images: Tensor, values: Tensor) -> Tensor:
    """Return tables [N,3,256] that keep the upper `int(value)` bits of a level, 1 to 8 of them."""
    dropped = 8 - values.to(torch.int64).clamp(1, 8).view(-1, 1, 1)
    return ((_levels(images) >> dropped) << dropped).to(torch.uint8).expand(-1, 3, -1)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Return tables [N,3,256] that scale the distance from the image's rounded mean grey."""
    sums = _grey(images).flatten(1).sum(1)
    mean = ((sums + NUM_PIXELS // 2) // NUM_PIXELS).view(-1, 1, 1)
    return _blend(mean, _levels(images), values.view(-1, 1, 1)).expand(-1, 3, -1)


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Return tables [N,3,256] that multiply levels by `value`."""
    levels = _levels(images)
    return _blend(torch.zeros_like(levels), levels, values.view(-1, 1, 1)).expand(-1, 3, -1)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each level by its entry in the table of its image and channel.

    Tables are uint8 [N,3,256], from one of the tone functions above.
    """
    return torch.gather(tables, 2, images.flatten(2).long()).unflatten(2, (SIZE, SIZE))


def _levels(images: Tensor) -> Tensor:
    """Return 0 to 255 as int64 [1,1,256] on the device of the images."""
    return torch.arange(NUM_LEVELS, device=images.device).view(1, 1, -1)


def color(images: Tensor, values: Tensor) -> Tensor:
    """Scale each pixel's distance from its grey by `value`; 0 is grey, 1 the image."""
    return _blend(_grey(images).unsqueeze(1), images, values.view(-1, 1, 1, 1))


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Scale each pixel's distance from its smoothed version by `value`.

    Pillow smooths with a 3x3 kernel of ones around a 5, over 13, rounds, and leaves the outermost
    pixels unchanged.
    """
    pixels = images.float()
    inner = pixels[:, :, 1:-1, 1:-1]
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    # No sum lies halfway between two levels, so this rounds like Pillow's sum of fractions.
    smooth = torch.floor(sums / 13 + 0.5)
    sharpened = images.clone()
    sharpened[:, :, 1:-1, 1:-1] = _blend(smooth, inner, values.view(-1, 1, 1, 1))
    return sharpened


def _grey(images: Tensor) -> Tensor:
    """Return Pillow's conversion to mode L: int32 [N,32,32], 16-bit weights, rounded."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """Return Pillow's `blend`: `start + factor * (end - start)` in float32, clipped to uint8."""
    start, end = start.float(), end.float()
    return (start + factor.float() * (end - start)).clamp_(0, 255).to(torch.uint8)


def cutout(images: Tensor, values: Tensor, centres: Tensor) -> Tensor:
    """Paint a square of `value` times the image's width in a colour near the mean.

    Corners are truncated to pixels and both belong to the square, as in Pillow. So it is one pixel
    wider than its size says. It is clipped at the border. A value of 0 paints nothing. Centres are
    float64 [N,2], x and y in pixels.
    """
    side = (values * SIZE).unsqueeze(1)
    first = (centres - side / 2).clamp_min(0).floor()
    last = (first + side).floor()
    pixel = torch.arange(SIZE, device=images.device).view(1, 1, -1)
    covered = (pixel >= first.unsqueeze(2)) & (pixel <= last.unsqueeze(2)) & (side > 0).unsqueeze(2)
    columns, rows = covered.unbind(1)
    square = rows.unsqueeze(2) & columns.unsqueeze(1)
    channels = [
        torch.where(square, level, channel)
        for level, channel in zip(CUTOUT_COLOUR, images.unbind(1), strict=True)
    ]
    return torch.stack(channels, 1)


def crop_and_flip(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Pad by 4 pixels of level 128, crop 32 x 32 and mirror some, like torchvision, in one gather.

    Shifts are int64 [N,2], row and column of the crop's corner in the padded image, 0 to 8. Flips
    are bool [N].
    """
    padded = F.pad(images, (CROP_PADDING,) * 4, value=CROP_FILL)
    width = padded.shape[3]
    pixel = torch.arange(SIZE, dtype=torch.int32, device=images.device)
    column = torch.where(flips.view(-1, 1, 1), SIZE - 1 - pixel, pixel)
    corner = (shifts[:, 0] * width + shifts[:, 1]).to(torch.int32).view(-1, 1, 1)
    return _take(padded, corner + pixel.view(-1, 1) * width + column)


GEOMETRY: dict[str, Callable[[Tensor], Tensor]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}
TONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Invert": invert,
    "Equalize": equalize,
    "Solarize": solarize,
    "Posterize": posterize,
    "Contrast": contrast,
    "Brightness": brightness,
}
BLEND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Color": color, "Sharpness": sharpness}
OPERATIONS = (*GEOMETRY, *TONE, *BLEND, "Cutout")


def apply_operation(name: str, images: Tensor, values: Tensor, centres: Tensor) -> Tensor:
    """Apply one of `OPERATIONS` to all images.

    Values are image widths for shear, translation and cutout, degrees for rotation, bits for
    posterize, otherwise a level or factor; some operations ignore them. Centres are for Cutout
    only.

    Raises:
        InputError: unknown operation.
    """
    if name in GEOMETRY:
        return resample(images, GEOMETRY[name](values))
    if name in TONE:
        return look_up(images, TONE[name](images, values))
    if name in BLEND:
        return BLEND[name](images, values)
    if name == "Cutout":
        return cutout(images, values, centres)
    raise unknown("operation", name, OPERATIONS)
