"""The fifteen corruptions of CIFAR-100-C [hendrycks2019], on batches (chapter `10_assembled_cnn`).

Kinds, order of operations and constants are those of the published generator for 32 x 32 images
[hendrycks_code]. Differences: our random numbers are others; the smallest steps of a blur are
rounded as floats, not as bytes; and `frost` is drawn, because the generator adds photographs that
we do not have: it lists six, and draws from the first five. So the mean over all corruptions is
near the published set's, not equal to it.

Images are uint8 `[N, 3, 32, 32]`; every image draws its own random numbers.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from micronet_lib.errors import InputError, check_choice

SIZE = 32
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Tensor, corruption: str, severity: int, generator: Generator) -> Tensor:
    """Return corrupted images.

    Args:
        images: uint8 `[N, 3, 32, 32]`, on the generator's device.
        corruption: a name of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: random numbers.

    Raises:
        InputError: unknown corruption or severity, or images of another size.
    """
    check_choice("corruption", corruption, CORRUPTIONS)
    check_choice("severity", severity, SEVERITIES)
    check_images(images, "corruptions")
    function, constants = CORRUPTIONS[corruption]
    found = function(images.float() / 255, generator, *constants[severity - 1])
    return as_bytes(found)


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]
) -> float:
    """Return mCE [hendrycks2019]: errors relative to a baseline's, mean over corruptions.

    For each corruption the errors of all severities are summed and divided by the baseline's sum.

    Args:
        errors: corruption -> fraction of wrong answers at each severity.
        baseline: the same of the network that all are compared with.

    Raises:
        InputError: the two have not the same corruptions and severities, or none; an error is NaN
            or infinite; or the baseline makes no error under one.
    """
    if not errors or errors.keys() != baseline.keys():
        raise InputError("errors and baseline need the same corruptions, at least one")
    for name, found in baseline.items():
        if len(errors[name]) != len(found) or not len(found):
            raise InputError(
                f"{len(errors[name])} errors under {name}, and {len(found)} of the baseline: give "
                "one for each severity, at least one"
            )
        if not math.isfinite(sum(errors[name]) + sum(found)):
            raise InputError(f"an error under {name} is NaN or infinite")
        if not sum(found):
            raise InputError(f"the baseline makes no error under {name}: choose a weaker one")
    ratios = [sum(errors[name]) / sum(baseline[name]) for name in errors]
    return sum(ratios) / len(ratios)


# ------------------------------------------------------------------------------------ parts


def check_images(images: Tensor, what: str) -> None:
    """Raise `InputError` unless images are uint8 `[N, 3, 32, 32]`; `what` would take them."""
    if images.dtype != torch.uint8 or images.shape[1:] != (3, SIZE, SIZE):
        raise InputError(
            f"images are {images.dtype} {list(images.shape)}; {what} take uint8 [N, 3, 32, 32]"
        )


def as_bytes(x: Tensor) -> Tensor:
    """Return floats from 0 to 1 as bytes, the fraction cut off as in the generator."""
    # The small number keeps whole levels whole.
    return (x.clamp(0, 1) * 255 + 1e-3).to(torch.uint8)


def normal(x: Tensor, generator: Generator, shape: Sequence[int] | None = None) -> Tensor:
    """Return standard normal numbers, as many as `x` has unless a shape is given."""
    return torch.randn(tuple(shape or x.shape), generator=generator, device=x.device)


def _uniform(x: Tensor, generator: Generator, shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=x.device)


def _gaussian(x: Tensor, sigma: float, truncate: float = 4.0, symmetric: bool = False) -> Tensor:
    """Blur with a Gaussian; beyond the border the edge is repeated, or the image mirrored."""
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return x
    places = torch.arange(-radius, radius + 1, device=x.device)
    row = torch.exp(-0.5 * (places / sigma) ** 2)
    row = row / row.sum()
    reach = torch.arange(-radius, SIZE + radius, device=x.device)
    if symmetric:
        reach = reach % (2 * SIZE)
        reach = torch.minimum(reach, 2 * SIZE - 1 - reach)
    reach = reach.clamp(0, SIZE - 1)
    rows = F.unfold(x.flatten(0, 1)[:, None][:, :, reach], (2 * radius + 1, 1))
    x = (row[:, None] * rows).sum(1).view(*x.shape)
    columns = F.unfold(x.flatten(0, 1)[:, None][:, :, :, reach], (1, 2 * radius + 1))
    return (row[:, None] * columns).sum(1).view(*x.shape)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Magnify the middle of square images, and cut it to their size."""
    part = math.ceil(SIZE / factor)
    start = (SIZE - part) // 2
    middle = x[:, :, start : start + part, start : start + part]
    side = round(part * factor)
    large = F.interpolate(middle, (side, side), mode="bilinear", align_corners=True)
    start = (side - SIZE) // 2
    return large[:, :, start : start + SIZE, start : start + SIZE]


def smeared(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Blur along one direction with one half of a Gaussian, as ImageMagick does.

    `degrees` `[N]` is the direction of each image. Beyond the border the edge is repeated.
    """
    width = 2 * math.ceil(radius) + 1
    weights = torch.exp(-0.5 * (torch.arange(width, device=x.device) / sigma) ** 2)
    weights = weights / weights.sum()
    angle = torch.deg2rad(degrees)
    places = torch.arange(SIZE, device=x.device)
    pictures = torch.arange(len(x), device=x.device)[:, None, None]
    found = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        down = torch.ceil(step * angle.sin() - 0.5).long()
        right = torch.ceil(step * angle.cos() - 0.5).long()
        rows = (places + down[:, None]).clamp(0, SIZE - 1)[:, :, None]
        columns = (places + right[:, None]).clamp(0, SIZE - 1)[:, None, :]
        found += weight * x[pictures, :, rows, columns].permute(0, 3, 1, 2)
    return found


def snowed(x: Tensor, flakes: Tensor, keep: float) -> Tensor:
    """Whiten images a little, and add flakes `[N, 1, 32, 32]`, once as they are and once turned."""
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    whiter = keep * x + (1 - keep) * torch.maximum(x, 1.5 * grey + 0.5)
    return whiter + flakes + flakes.rot90(2, (2, 3))


def brightened(x: Tensor, amount: float) -> Tensor:
    """Raise the value of HSV: hue and saturation stay, so all channels grow by one factor."""
    value = x.amax(1, keepdim=True)
    raised = (value + amount).clamp(0, 1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-9), raised)


def _plasma(x: Tensor, generator: Generator, decay: float) -> Tensor:
    """Return random clouds `[N, 1, 32, 32]` from 0 to 1, by the diamond-square algorithm."""
    clouds = torch.zeros(len(x), SIZE, SIZE, device=x.device)
    step, wibble = SIZE, 100.0

    def wibbled(total: Tensor) -> Tensor:
        return total / 4 + wibble**2 * (2 * _uniform(x, generator, total.shape) - 1)

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        clouds[:, half::step, half::step] = wibbled(total + total.roll(-1, 2))
        corners, middles = clouds[:, ::step, ::step], clouds[:, half::step, half::step]
        rows = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        columns = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        clouds[:, ::step, half::step] = wibbled(rows)
        clouds[:, half::step, ::step] = wibbled(columns)
        step, wibble = half, wibble / decay
    clouds = clouds - clouds.amin((1, 2), keepdim=True)
    return (clouds / clouds.amax((1, 2), keepdim=True))[:, None]


def _sampled(x: Tensor, rows: Tensor, columns: Tensor, whole_pixels: bool) -> Tensor:
    """Read images between pixels; `rows` and `columns` `[N, 32, 32]` say where.

    Beyond the border they are mirrored, at the middle of the last pixel or (`whole_pixels`) at its
    end.
    """
    places = torch.stack([columns, rows], -1)
    grid = (2 * places + 1) / SIZE - 1 if whole_pixels else 2 * places / (SIZE - 1) - 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=not whole_pixels)


# ------------------------------------------------------------------------------ corruptions


def _gaussian_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    return x + scale * normal(x, generator)


def _shot_noise(x: Tensor, generator: Generator, photons: float) -> Tensor:
    return torch.poisson(x * photons, generator) / photons


def _impulse_noise(x: Tensor, generator: Generator, amount: float) -> Tensor:
    hit = _uniform(x, generator, x.shape) < amount
    return torch.where(hit, (_uniform(x, generator, x.shape) < 0.5).float(), x)


def _defocus_blur(x: Tensor, generator: Generator, radius: float, soft: float) -> Tensor:
    places = torch.arange(-2.0, 3.0, device=x.device)
    disk = (places[:, None] ** 2 + places**2 <= radius**2).float()
    row = torch.exp(-0.5 * (torch.arange(-1.0, 2.0, device=x.device) / soft) ** 2)
    row = row / row.sum()
    kernel = F.conv2d((disk / disk.sum())[None, None], (row[:, None] * row)[None, None], padding=1)
    padded = F.pad(x, [2] * 4, mode="reflect")
    return F.conv2d(padded, kernel.repeat(3, 1, 1, 1), groups=3)


def _glass_blur(x: Tensor, generator: Generator, sigma: float, times: int) -> Tensor:
    """Take every pixel from itself or a neighbour above or left, between two blurs.

    The generator means to swap two pixels. Its swap of two views copies one of them, so what runs
    there is this.
    """
    x = (_gaussian(x, sigma) * 255 + 1e-3).floor() / 255
    pictures = torch.arange(len(x), device=x.device)[:, None, None]
    places = torch.arange(SIZE, device=x.device)
    moves = (places >= 2).long()
    for _ in range(times):
        back = (_uniform(x, generator, (2, len(x), SIZE, SIZE)) < 0.5).long()
        back = back * (moves[:, None] * moves)
        x = x[pictures, :, places[:, None] - back[0], places - back[1]].permute(0, 3, 1, 2)
    return _gaussian(x, sigma)


def _motion_blur(x: Tensor, generator: Generator, radius: float, sigma: float) -> Tensor:
    return smeared(x, radius, sigma, 90 * _uniform(x, generator, (len(x),)) - 45)


def _zoom_blur(x: Tensor, generator: Generator, end: float) -> Tensor:
    factors = np.arange(1, end, 0.01)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _snow(
    x: Tensor,
    generator: Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Tensor:
    flakes = mean + scale * normal(x, generator, (len(x), 1, SIZE, SIZE))
    flakes = zoomed(flakes, zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    direction = -135 + 90 * _uniform(x, generator, (len(x),))
    flakes = smeared(flakes, radius, sigma, direction)
    return snowed(x, flakes, keep)


def _frost(x: Tensor, generator: Generator, keep: float, amount: float) -> Tensor:
    """Add drawn ice: bright ridges of two clouds, bluish. The generator adds photographs."""
    first, second = (1 - (2 * _plasma(x, generator, 2.0) - 1).abs() for _ in range(2))
    ice = torch.maximum(first, second) ** 2
    return keep * x + amount * ice * x.new_tensor([0.85, 0.95, 1.0])[:, None, None]


def _fog(x: Tensor, generator: Generator, amount: float, decay: float) -> Tensor:
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * _plasma(x, generator, decay)) * brightest / (brightest + amount)


def _brightness(x: Tensor, generator: Generator, amount: float) -> Tensor:
    return brightened(x, amount)


def _contrast(x: Tensor, generator: Generator, factor: float) -> Tensor:
    means = x.mean((2, 3), keepdim=True)
    return (x - means) * factor + means


def _elastic(x: Tensor, generator: Generator, shift: float, sigma: float, jitter: float) -> Tensor:
    middle, reach = SIZE // 2, SIZE // 3
    low, high = middle - reach, middle + reach
    # Three corners, as (column, row, 1), move; the affine map that moves them is inverted.
    corners = x.new_tensor([[high, high], [high, low], [low, low]]).repeat(len(x), 1, 1)
    moved = corners + SIZE * jitter * (2 * _uniform(x, generator, corners.shape) - 1)
    one = corners.new_ones(len(x), 3, 1)
    inverse = torch.linalg.solve(torch.cat([moved, one], -1), corners)  # [N, 3, 2]
    places = torch.arange(SIZE, device=x.device, dtype=x.dtype)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    sources = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ inverse[:, None]
    x = _sampled(x, sources[..., 1], sources[..., 0], whole_pixels=False)
    noise = 2 * _uniform(x, generator, (len(x), 2, SIZE, SIZE)) - 1
    moves = SIZE * shift * _gaussian(noise, SIZE * sigma, truncate=3, symmetric=True)
    return _sampled(x, rows + moves[:, 1], columns + moves[:, 0], whole_pixels=True)


def _box(size_in: int, size_out: int) -> Tensor:
    """Return Pillow's box filter between two sizes as a matrix `[size_out, size_in]`."""
    scale = size_in / size_out
    support = 0.5 * max(scale, 1.0)
    matrix = torch.zeros(size_out, size_in)
    for place in range(size_out):
        centre = (place + 0.5) * scale
        start = max(0, int(centre - support + 0.5))
        stop = min(size_in, int(centre + support + 0.5))
        for source in range(start, stop):
            at = (source - centre + 0.5) / max(scale, 1.0)
            matrix[place, source] = float(-0.5 < at <= 0.5)
    return matrix / matrix.sum(1, keepdim=True)


def _pixelate(x: Tensor, generator: Generator, factor: float) -> Tensor:
    small = int(SIZE * factor)
    for matrix in (_box(SIZE, small).to(x), _box(small, SIZE).to(x)):
        x = (255 * (x @ matrix.T)).add(0.5).floor() / 255
        x = (255 * (matrix @ x)).add(0.5).floor() / 255
    return x


def _jpeg(x: Tensor, generator: Generator, quality: int) -> Tensor:
    """Write and read every image with Pillow, as the generator does."""
    from PIL import Image

    found = []
    for image in (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        found.append(np.array(Image.open(buffer)))
    read = torch.from_numpy(np.stack(found)) if found else torch.zeros(0, SIZE, SIZE, 3)
    return read.permute(0, 3, 1, 2).to(x) / 255


def _each(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (_gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, _each(500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, _each(1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": (
        _elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, _each(80, 65, 58, 50, 40)),
}
"""Function and constants of severities 1 to 5, by name, in the order of [hendrycks2019]."""
