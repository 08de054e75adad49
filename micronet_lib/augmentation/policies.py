"""Random variants of images: Fast AutoAugment [lim2019], random crops and mirror images.

A policy is a list of sub-policies. A sub-policy is two steps, each an operation, its probability,
and a level from 0 to 1 for its strength. Every image gets its own sub-policy, then a crop, then
perhaps a mirror image, as in the authors' code [kim2020, section 4]. The two steps are not merged
into one resampling, because two roundings to the nearest pixel are not one, and colours may change
in between. Chapter `04_augmentation`.

`draw` makes all random decisions, as tensors. Two functions apply the same decisions with equal
results, to the last bit. `apply_subset` groups the images by operation and is fast on a CPU.
`apply_static` does the same work whatever was drawn, as a CUDA graph needs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from micronet_lib.augmentation import image_ops
from micronet_lib.augmentation.image_ops import (
    BLEND,
    CROP_PADDING,
    GEOMETRY,
    OPERATIONS,
    SIZE,
    TONE,
)
from micronet_lib.augmentation.mixing import MixKind
from micronet_lib.errors import InputError, check_choice, unknown

PolicyKind = Literal["none", "fast_autoaugment", "searched", "random", "autoaugment"]

# Key of a policy file that says where its sets came from; it is not itself a set.
PROVENANCE = "provenance"

NO_OPERATION = len(OPERATIONS)
NUM_STEPS = 2
# The values that levels 0 and 1 of a policy stand for [lim2019].
VALUE_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("ShearX", "ShearY"), (-0.3, 0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (-0.45, 0.45)),
    "Rotate": (-30, 30),
    **dict.fromkeys(("AutoContrast", "Invert", "Equalize"), (0, 1)),
    "Solarize": (0, 256),
    "Posterize": (4, 8),
    **dict.fromkeys(("Contrast", "Color", "Brightness", "Sharpness"), (0.1, 1.9)),
    "Cutout": (0, 0.2),
}
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")
# What torchvision's AutoAugment does at its level 9, from nothing at level 0; in the same units.
_MOST: dict[str, float] = {
    **dict.fromkeys(("ShearX", "ShearY"), 0.3),
    **dict.fromkeys(("TranslateX", "TranslateY"), 150 / 331),
    "Rotate": 30,
    **dict.fromkeys(FACTORS, 0.9),
    "Solarize": 255,
    "Posterize": 4,
}
_MOST_LEVEL = 9

# Images at a time: the first fits a CPU's caches, the second bounds the memory of a GPU.
SUBSET_CHUNK = 512
STATIC_CHUNK = 8192


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of augmentation.

    Attributes:
        policy: none, the published file's, those of our own search, random ones, or AutoAugment's
            for CIFAR-10 (`autoaugment_policies`).
        crop: pad by 4 pixels of level 128 and crop 32 x 32 at random.
        flip: mirror half of the images.
        policy_set: name of a set in the policy file, or `all` of them as one list. `all` is close
            to the released code, which passes each image once through each of its four sets.
        policy_digest: first digits of the sha256 of the searched policies' file, so that another
            search makes another recipe. Empty until the recipe is resolved.
        mix: how images are mixed in pairs, see `micronet_lib.augmentation.mixing`.
        mix_alpha: both parameters of the Beta distribution of the mixing weight.
            [lee2020assembled] has 0.2.
        mix_prob: fraction of batches that are mixed.

    Raises:
        InputError: an unknown name, or a number outside its range.
    """

    policy: PolicyKind = "none"
    crop: bool = True
    flip: bool = True
    policy_set: str = "all"
    mix: MixKind = "none"
    mix_alpha: float = 1.0
    mix_prob: float = 1.0
    policy_digest: str = ""

    def __post_init__(self) -> None:
        for field, kinds in (("policy", get_args(PolicyKind)), ("mix", get_args(MixKind))):
            check_choice(field, getattr(self, field), kinds)
        if not 0 < self.mix_alpha < float("inf"):
            raise InputError(f"mix_alpha is {self.mix_alpha}: give a number above 0")
        if not 0 <= self.mix_prob <= 1:
            raise InputError(f"mix_prob is {self.mix_prob}: give a fraction from 0 to 1")


@dataclass(frozen=True, eq=False)
class Policies:
    """A table of sub-policies: a row for each, a column for each step.

    Attributes:
        ops: int64 [P,2], indices into `OPERATIONS`.
        probabilities: float64 [P,2], of applying the step.
        values: float64 [P,2], in the units of `VALUE_RANGES`.
    """

    ops: Tensor
    probabilities: Tensor
    values: Tensor


def load_policies(path: str | Path, policy_set: str = "all") -> Policies:
    """Read a set of a policy file, or `all`: JSON, name of a set -> list of sub-policies.

    Repeated sub-policies count each time. The key `provenance` is not a set.

    Raises:
        InputError: the file is missing or malformed, or has no such set.
    """
    try:
        sets = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): `micronet data fetch policies` gets the "
            "published file, `micronet search-policies` makes one of our own"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): delete it and get it again") from error
    if isinstance(sets, dict):
        sets.pop(PROVENANCE, None)
    if not isinstance(sets, dict) or not all(isinstance(s, list) for s in sets.values()):
        raise InputError(f"{path} does not map names of sets to lists of sub-policies")
    if policy_set != "all" and policy_set not in sets:
        raise unknown("policy set", policy_set, ["all", *sets])
    chosen = sets.values() if policy_set == "all" else [sets[policy_set]]
    try:
        return compile_policies([sub_policy for one_set in chosen for sub_policy in one_set])
    except InputError as error:
        raise InputError(f"{path}, set {policy_set}: {error}") from error


def compile_policies(sub_policies: Sequence[Sequence[Sequence[str | float]]]) -> Policies:
    """Return the table of a list of sub-policies, each two `[operation, probability, level]`.

    Raises:
        InputError: an empty list, or a malformed sub-policy; the message says which.
    """
    if not sub_policies:
        raise InputError("there is no sub-policy")
    for place, sub_policy in enumerate(sub_policies):
        if not isinstance(sub_policy, Sequence) or [*map(_is_step, sub_policy)] != [True, True]:
            raise InputError(
                f"sub-policy {place} is not two [operation, probability, level] with numbers from "
                f"0 to 1 and an operation of {', '.join(OPERATIONS)}: {sub_policy}"
            )
    steps = [step for sub_policy in sub_policies for step in sub_policy]
    ops = torch.tensor([OPERATIONS.index(str(name)) for name, *_ in steps]).view(-1, NUM_STEPS)
    numbers = torch.tensor([step[1:] for step in steps], dtype=torch.float64)
    probabilities, levels = numbers.view(-1, NUM_STEPS, 2).unbind(2)
    return Policies(ops, probabilities, _values(ops, levels))


def _is_step(step: object) -> bool:
    match step:
        case [str(name), int() | float() as probability, int() | float() as level]:
            return name in OPERATIONS and 0 <= probability <= 1 and 0 <= level <= 1
    return False


def uniform_policies(generator: torch.Generator, num: int) -> Policies:
    """Return `num` random sub-policies with uniform operations, probabilities and levels.

    Used when no policy file is available (the record notes it) and as the control in the search.
    """
    device = generator.device
    uniform = partial(torch.rand, generator=generator, device=device, dtype=torch.float64)
    ops = torch.randint(NO_OPERATION, (num, NUM_STEPS), generator=generator, device=device)
    return Policies(ops, uniform(num, NUM_STEPS), _values(ops, uniform(num, NUM_STEPS)))


def _values(ops: Tensor, levels: Tensor) -> Tensor:
    ranges = [VALUE_RANGES[name] for name in OPERATIONS]
    low, high = torch.tensor(ranges, dtype=torch.float64, device=ops.device)[ops].unbind(-1)
    return levels * (high - low) + low


def autoaugment_policies() -> Policies:
    """Return the 25 sub-policies that AutoAugment found on CIFAR-10 [cubuk2019], as a table.

    List and strengths are torchvision's. A factor may strengthen or weaken, each with probability
    one half, so every sub-policy has four rows, one for each pair of signs. `draw` reverses the
    geometric operations. Unlike in [cubuk2019], no square is cut out afterwards. Crop and mirror
    image come after the policy, as after all policies here; in [assembled_code] they come before.
    """
    steps = [
        [_at_level(step, sign) for step, sign in zip(sub_policy, signs, strict=True)]
        for sub_policy in AutoAugment(AutoAugmentPolicy.CIFAR10).policies
        for signs in product((1, -1), repeat=NUM_STEPS)
    ]
    table = torch.tensor(steps, dtype=torch.float64)  # [P, 2, 3]
    return Policies(table[..., 0].long(), table[..., 1], table[..., 2])


def _at_level(step: tuple[str, float, int | None], sign: int) -> tuple[int, float, float]:
    """Return operation, probability and value of a step of torchvision's table."""
    name, probability, level = step
    amount = _MOST.get(name, 0.0) * (level or 0) / _MOST_LEVEL
    if name in FACTORS:
        amount = 1 + sign * amount
    elif name.startswith("Translate"):
        amount = int(amount * SIZE) / SIZE  # torchvision drops the part of a pixel
    elif name == "Solarize":
        amount = _MOST[name] - amount
    elif name == "Posterize":
        amount = 8 - round(amount)
    return OPERATIONS.index(name), probability, amount


@dataclass(frozen=True, eq=False)
class Draws:
    """The random decisions for N images.

    Attributes:
        ops: int64 [N,S], indices into `OPERATIONS`, or `NO_OPERATION`; S is 2, or 0 without policy.
        values: float64 [N,S], signed.
        centres: float64 [N,S,2], x and y of a cutout in pixels.
        shifts: int64 [N,2], row and column of the crop in the padded image; (4, 4) is the middle.
        flips: bool [N], whether to mirror.
    """

    ops: Tensor
    values: Tensor
    centres: Tensor
    shifts: Tensor
    flips: Tensor

    def to(self, device: torch.device | str) -> "Draws":
        """Return the decisions on a device."""
        return Draws(*(getattr(self, field.name).to(device) for field in fields(self)))

    def split(self, size: int) -> list["Draws"]:
        """Return the decisions in chunks of `size` images."""
        parts = (getattr(self, field.name).split(size) for field in fields(self))
        return [Draws(*part) for part in zip(*parts, strict=True)]


def draw(
    policies: Policies | None,
    num_images: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    *,
    crop: bool = True,
    flip: bool = True,
) -> Draws:
    """Draw the decisions for N images.

    As in the released code: one sub-policy for each image, uniformly; each step with its
    probability; half of the shears, translations and rotations reversed; a cutout's centre uniform
    from 1 to 32 (`numpy.random.uniform(32)` uses 32 as one end; the other is 1 by default).

    Without policies there are only crops and mirror images; without `crop` no shift, without `flip`
    no mirror image. A CPU generator gives every machine the same images.
    """
    source = generator.device
    uniform = partial(torch.rand, generator=generator, device=source, dtype=torch.float64)
    integers = partial(torch.randint, generator=generator, device=source)
    if policies is None:
        ops, values = integers(1, (num_images, 0)), uniform(num_images, 0)
    else:
        row = integers(len(policies.ops), (num_images,))
        values = policies.values.to(source)[row]
        mirrored = uniform(num_images, NUM_STEPS) > 0.5
        done = uniform(num_images, NUM_STEPS) <= policies.probabilities.to(source)[row]
        ops = torch.where(done, policies.ops.to(source)[row], NO_OPERATION)
        values = torch.where(mirrored & (ops < len(GEOMETRY)), -values, values)
    centres = SIZE - (SIZE - 1) * uniform(*ops.shape, 2)
    shifts = integers(2 * CROP_PADDING + 1, (num_images, 2))
    if not crop:
        shifts = torch.full_like(shifts, CROP_PADDING)
    flips = (uniform(num_images) < 0.5) & flip
    return Draws(ops, values, centres, shifts, flips).to(device)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply decisions to images in chunks, with the function that suits their device.

    Images are uint8 [N,3,32,32] and do not change; the result is a new tensor.

    Raises:
        InputError: images of another type or shape, or another number of decisions.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (3, SIZE, SIZE):
        raise InputError(
            f"images are {images.dtype} {list(images.shape)}: augment before normalising, "
            f"torch.uint8 [N, 3, {SIZE}, {SIZE}]"
        )
    if len(images) != len(draws.ops):
        raise InputError(f"{len(images)} images, but decisions about {len(draws.ops)}")
    on_cpu = images.device.type == "cpu"
    apply, size = (apply_subset, SUBSET_CHUNK) if on_cpu else (apply_static, STATIC_CHUNK)
    parts = zip(images.split(size), draws.split(size), strict=True)
    return torch.cat([apply(chunk, part) for chunk, part in parts])


def apply_subset(images: Tensor, draws: Draws) -> Tensor:
    """Apply each operation to the images that drew it. Arguments and result as for `augment`."""
    for step in range(draws.ops.shape[1]):
        ops, values, centres = draws.ops[:, step], draws.values[:, step], draws.centres[:, step]
        order, counts = ops.argsort(), torch.bincount(ops, minlength=NO_OPERATION + 1).tolist()
        groups = (x.index_select(0, order).split(counts) for x in (images, values, centres))
        *done, untouched = zip(*groups, strict=True)
        results = [
            image_ops.apply_operation(name, *group) if len(group[0]) else group[0]
            for name, group in zip(OPERATIONS, done, strict=True)
        ]
        images = torch.cat([*results, untouched[0]]).index_select(0, order.argsort())
    return image_ops.crop_and_flip(images, draws.shifts, draws.flips)


def apply_static(images: Tensor, draws: Draws) -> Tensor:
    """Compute every operation for every image, select the drawn ones. Arguments as for `augment`.

    Matrices and tables are computed operation by operation; pixels are moved once for each type.
    """
    for step in range(draws.ops.shape[1]):
        ops, values, centres = draws.ops[:, step], draws.values[:, step], draws.centres[:, step]
        drew = {name: (ops == place).view(-1, 1, 1) for place, name in enumerate(OPERATIONS)}
        matrices = image_ops.translate_x(torch.zeros_like(values))
        for name, matrix in GEOMETRY.items():
            matrices = torch.where(drew[name][:, 0], matrix(values), matrices)
        images = image_ops.resample(images, matrices)
        tables = image_ops.brightness(images, torch.ones_like(values))
        for name, table in TONE.items():
            tables = torch.where(drew[name], table(images, values), tables)
        images = image_ops.look_up(images, tables)
        for name, blend in BLEND.items():
            images = torch.where(drew[name].unsqueeze(3), blend(images, values), images)
        painted = image_ops.cutout(images, values, centres)
        images = torch.where(drew["Cutout"].unsqueeze(3), painted, images)
    return image_ops.crop_and_flip(images, draws.shifts, draws.flips)
