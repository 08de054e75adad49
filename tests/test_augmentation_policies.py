"""Policies and draws; both appliers against Pillow, image by image, with the same decisions."""

import json
from dataclasses import fields, replace

import pytest
import torch
from pillow_operations import PILLOW
from published_data import require
from test_augmentation_image_ops import (
    BLENDED,
    PILLOW_ROUNDS_TWICE,
    POLICY_FILE,
    from_pillow,
    sample_images,
    to_pillow,
)
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms import functional as torchvision

from micronet_lib.augmentation import policies as augmentation
from micronet_lib.augmentation.image_ops import OPERATIONS, apply_operation
from micronet_lib.augmentation.policies import (
    FACTORS,
    NO_OPERATION,
    VALUE_RANGES,
    AugmentConfig,
    Draws,
    Policies,
    apply_static,
    apply_subset,
    augment,
    autoaugment_policies,
    compile_policies,
    draw,
    load_policies,
    uniform_policies,
)
from micronet_lib.errors import InputError

SUB_POLICY = [["Rotate", 0.5, 0.25], ["Invert", 1.0, 0.5]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def many_draws(num_images: int, seed: int = 0) -> Draws:
    """Draws in which nearly every step is done."""
    policies = uniform_policies(generator(seed), 600)
    always = Policies(policies.ops, policies.probabilities.sqrt().sqrt(), policies.values)
    return draw(always, num_images, generator(seed + 1))


def by_pillow(images: Tensor, draws: Draws) -> Tensor:
    """The pipeline as it is usually written, one Pillow image after the other."""
    results = []
    for number, tensor in enumerate(images):
        image = to_pillow(tensor)
        for step in range(draws.ops.shape[1]):
            place = int(draws.ops[number, step])
            if place != NO_OPERATION:
                x, y = draws.centres[number, step].tolist()
                value = float(draws.values[number, step])
                image = PILLOW[OPERATIONS[place]](image, value, (x, y))
        row, column = draws.shifts[number].tolist()
        image = torchvision.crop(torchvision.pad(image, 4, fill=128), row, column, 32, 32)
        if draws.flips[number]:
            image = torchvision.hflip(image)
        results.append(from_pillow(image))
    return torch.stack(results)


# ------------------------------------------------------------------------------------- applying


def test_both_appliers_and_pillow_agree():
    images = sample_images().repeat(30, 1, 1, 1)
    draws = many_draws(len(images))
    assert set(draws.ops.flatten().tolist()) == set(range(NO_OPERATION + 1))
    before = images.clone()
    subset = apply_subset(images, draws)
    assert torch.equal(subset, apply_static(images, draws))
    assert torch.equal(images, before)
    if not PILLOW_ROUNDS_TWICE:
        blended = torch.tensor([OPERATIONS.index(name) for name in BLENDED])
        same = ~torch.isin(draws.ops, blended).any(1)
        images, subset = images[same], subset[same]
        draws = Draws(*(getattr(draws, field.name)[same] for field in fields(draws)))
    assert torch.equal(subset, by_pillow(images, draws))


def test_the_published_policies_make_pillows_images():
    require(POLICY_FILE)
    images = sample_images().repeat(10, 1, 1, 1)
    draws = draw(load_policies(POLICY_FILE), len(images), generator())
    subset = apply_subset(images, draws)
    assert torch.equal(subset, apply_static(images, draws))
    wrong = (subset.int() - by_pillow(images, draws).int()).abs().flatten(1).amax(1) > 0
    assert wrong.sum() == 0 if PILLOW_ROUNDS_TWICE else wrong.float().mean() < 0.05


def test_steps_happen_one_after_the_other():
    """A turn by 30 degrees and back is not the image: two resamplings, each with black corners."""
    images = sample_images()[29:37]
    draws = draw(None, len(images), generator(), crop=False, flip=False)
    turned = replace(
        draws,
        ops=torch.full((len(images), 2), OPERATIONS.index("Rotate")),
        values=torch.tensor([[30.0, -30.0]], dtype=torch.float64).expand(len(images), 2),
        centres=torch.zeros(len(images), 2, 2, dtype=torch.float64),
    )
    result = apply_subset(images, turned)
    assert torch.equal(result, by_pillow(images, turned))
    assert (result[:, :, 0, 0] == 0).all()
    assert not torch.equal(result, images)


@pytest.mark.parametrize(("crop", "flip"), [(False, False), (True, False), (False, True)])
def test_without_policy_only_crop_and_flip_are_left(crop, flip):
    images = sample_images()
    draws = draw(None, len(images), generator(), crop=crop, flip=flip)
    result = augment(images, draws)
    assert torch.equal(result, by_pillow(images, draws))
    assert torch.equal(result, apply_static(images, draws))
    assert torch.equal(result, images) == (not crop and not flip)


def test_neither_chunks_nor_one_image_at_a_time_nor_none_change_a_thing(monkeypatch):
    images, draws = sample_images(), many_draws(40)
    expected = apply_subset(images, draws)
    assert torch.equal(augment(images, draws), expected)
    monkeypatch.setattr(augmentation, "SUBSET_CHUNK", 7)
    assert torch.equal(augment(images, draws), expected)
    one = [augment(images[i : i + 1], part) for i, part in enumerate(draws.split(1))]
    assert torch.equal(torch.cat(one), expected)
    assert augment(images[:0], many_draws(0)).shape == (0, 3, 32, 32)


def test_the_static_applier_is_one_graph():
    """No branch on data, no shape that depends on it: the trace has no break."""
    traced = torch.compile(apply_static, fullgraph=True, backend="eager", dynamic=False)
    images = sample_images()
    for seed in (0, 1):  # the second call reuses the first one's graph
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            draws = many_draws(len(images), seed)
            assert torch.equal(traced(images, draws), apply_subset(images, draws))


def test_another_device_takes_the_static_applier_which_stays_there(monkeypatch):
    """On the device without contents every wait for a value and every foreign tensor raises."""
    monkeypatch.setattr(augmentation, "STATIC_CHUNK", 2)
    images = torch.empty(5, 3, 32, 32, dtype=torch.uint8, device="meta")
    result = augment(images, draw(uniform_policies(generator(), 20), 5, generator(), "meta"))
    assert (result.device.type, result.shape, result.dtype) == ("meta", images.shape, torch.uint8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_makes_the_cpus_images():
    images = sample_images().cuda()
    draws = draw(uniform_policies(generator(), 600), 40, generator(), "cuda")
    apply_static(images, draws)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = apply_static(images, draws)
    for seed in (1, 2):
        fresh = many_draws(40, seed)
        for field in fields(draws):
            getattr(draws, field.name).copy_(getattr(fresh, field.name))
        graph.replay()
        assert torch.equal(result.cpu(), apply_subset(images.cpu(), fresh))


def test_images_of_the_wrong_kind():
    draws = many_draws(2)
    with pytest.raises(InputError, match=r"torch.float32 \[2, 3, 32, 32\]: augment before"):
        augment(torch.zeros(2, 3, 32, 32), draws)
    with pytest.raises(InputError, match=r"\[2, 3, 28, 28\]"):
        augment(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), draws)
    with pytest.raises(InputError, match="3 images, but decisions about 2"):
        augment(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), draws)


# -------------------------------------------------------------------------------------- drawing


def equal(draws: Draws, others: Draws) -> bool:
    pairs = [(getattr(draws, f.name), getattr(others, f.name)) for f in fields(Draws)]
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_same_seed_draws_the_same():
    policies = uniform_policies(generator(), 20)
    first, again, other = (draw(policies, 50, generator(seed)) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)
    running = generator(1)
    draw(policies, 50, running)
    assert not equal(first, draw(policies, 50, running))
    torch.manual_seed(7)
    assert equal(first, draw(policies, 50, generator(1)))


def test_shapes_types_and_bounds():
    draws = many_draws(300)
    assert (draws.ops.dtype, draws.ops.shape) == (torch.int64, (300, 2))
    assert (draws.values.dtype, draws.values.shape) == (torch.float64, (300, 2))
    assert (draws.centres.dtype, draws.centres.shape) == (torch.float64, (300, 2, 2))
    assert (draws.shifts.dtype, draws.shifts.shape) == (torch.int64, (300, 2))
    assert (draws.flips.dtype, draws.flips.shape) == (torch.bool, (300,))
    assert draw(None, 5, generator()).ops.shape == (5, 0)
    assert (draws.shifts.min(), draws.shifts.max()) == (0, 8)
    for op, value in zip(
        draws.ops.flatten().tolist(), draws.values.flatten().tolist(), strict=True
    ):
        if op != NO_OPERATION:
            low, high = VALUE_RANGES[OPERATIONS[op]]
            assert low <= value <= high


def sigmas(count: Tensor, num: int, probability: float) -> float:
    """How far a count is from what a coin of this probability gives, in standard deviations."""
    return abs(float(count) - num * probability) / (num * probability * (1 - probability)) ** 0.5


def test_each_step_happens_with_its_probability():
    policies = compile_policies(
        [
            [("Rotate", 0.2, 0.9), ("Posterize", 0.7, 0.5)],
            [("Color", 0.0, 0.1), ("ShearX", 1.0, 1.0)],
        ]
    )
    num = 20_000
    draws = draw(policies, num, generator())
    rotate, posterize, shear, none = (
        draws.ops == op
        for op in (*map(OPERATIONS.index, ("Rotate", "Posterize", "ShearX")), NO_OPERATION)
    )
    assert sigmas(rotate[:, 0].sum(), num, 0.5 * 0.2) < 4
    assert sigmas(posterize[:, 1].sum(), num, 0.5 * 0.7) < 4
    assert sigmas(shear[:, 1].sum(), num, 0.5) < 4
    assert sigmas(none[:, 0].sum(), num, 0.5 * 0.8 + 0.5) < 4
    both = rotate[:, 0] & posterize[:, 1]
    assert sigmas(both.sum(), num, 0.5 * 0.2 * 0.7) < 4  # the two steps decide on their own
    assert not (posterize[:, 1] & (draws.ops[:, 0] == OPERATIONS.index("Color"))).any()
    # Geometry goes either way, tone does not.
    assert set(draws.values[rotate].tolist()) == {0.9 * 60 - 30, 30 - 0.9 * 60}
    assert set(draws.values[shear].tolist()) == {0.3, -0.3}
    assert set(draws.values[posterize].tolist()) == {6.0}
    assert sigmas((draws.values[shear] < 0).sum(), int(shear.sum()), 0.5) < 4


def test_places_are_uniform():
    num = 20_000
    draws = draw(uniform_policies(generator(), 3), num, generator())
    assert sigmas(draws.flips.sum(), num, 0.5) < 4
    for shift in range(9):
        for axis in (0, 1):
            assert sigmas((draws.shifts[:, axis] == shift).sum(), num, 1 / 9) < 4
    # numpy.random.uniform(32) is uniform between 1 and 32, as the released cutouts are.
    assert (draws.centres > 1).all()
    assert (draws.centres <= 32).all()
    for quarter in range(4):
        inside = (draws.centres > 1 + 7.75 * quarter) & (draws.centres <= 8.75 + 7.75 * quarter)
        assert sigmas(inside.sum(), draws.centres.numel(), 0.25) < 4


# ------------------------------------------------------------------------------------- policies


def test_a_table_by_hand():
    policies = compile_policies([SUB_POLICY, [("Posterize", 0, 1), ("Cutout", 1, 0.5)]])
    names = [[OPERATIONS[op] for op in pair] for pair in policies.ops.tolist()]
    assert names == [["Rotate", "Invert"], ["Posterize", "Cutout"]]
    assert policies.probabilities.tolist() == [[0.5, 1.0], [0.0, 1.0]]
    assert policies.values.tolist() == [[-15.0, 0.5], [8.0, 0.1]]


def test_random_policies_are_uniform_and_repeatable():
    policies = uniform_policies(generator(), 10_000)
    again = uniform_policies(generator(), 10_000)
    assert torch.equal(policies.ops, again.ops)
    assert torch.equal(policies.values, again.values)
    assert policies.ops.shape == policies.probabilities.shape == policies.values.shape
    for op, name in enumerate(OPERATIONS):
        here = policies.ops == op
        assert sigmas(here.sum(), 20_000, 1 / 15) < 4
        low, high = VALUE_RANGES[name]
        upper_half = policies.values[here] > (low + high) / 2
        assert sigmas(upper_half.sum(), int(here.sum()), 0.5) < 4
        assert policies.values[here].min() >= low
        assert policies.values[here].max() <= high
    assert sigmas((policies.probabilities < 0.25).sum(), 20_000, 0.25) < 4


def test_the_published_file():
    require(POLICY_FILE)
    sizes = {
        "fa_wresnet28x10_cifar100": (496, 248),
        "fa_shake26_2x96d_cifar100": (498, 498),
        "fa_wresnet40x2_cifar100": (500, 250),
        "fa_wresnet40x2_cifar100_r5": (490, 245),
        "all": (1984, 1241),
    }
    for policy_set, size in sizes.items():
        policies = load_policies(POLICY_FILE, policy_set)
        rows = torch.cat([policies.ops.double(), policies.probabilities, policies.values], 1)
        assert (len(rows), len(rows.unique(dim=0))) == size, policy_set
    # Values are the doubles of the formula.
    name = "fa_wresnet28x10_cifar100"
    expected = [
        [level * (VALUE_RANGES[op][1] - VALUE_RANGES[op][0]) + VALUE_RANGES[op][0]]
        for sub_policy in json.loads(POLICY_FILE.read_text(encoding="utf-8"))[name]
        for op, _, level in sub_policy
    ]
    assert load_policies(POLICY_FILE, name).values.view(-1, 1).tolist() == expected


def test_sets_are_chosen_by_name_and_provenance_is_none(tmp_path):
    path = tmp_path / "policies.json"
    other = [["Color", 0.1, 0.2], ["Cutout", 0.3, 0.4]]
    provenance = {"seed": 1}
    path.write_text(
        json.dumps({"provenance": provenance, "one": [SUB_POLICY], "two": [other, other]})
    )
    assert load_policies(path, "one").probabilities.tolist() == [[0.5, 1.0]]
    assert load_policies(str(path), "two").probabilities.tolist() == [[0.1, 0.3]] * 2
    assert len(load_policies(path).ops) == 3
    for name in ("three", "provenance"):
        with pytest.raises(InputError, match=f"'{name}'; choose from all, one, two"):
            load_policies(path, name)


def test_a_malformed_file(tmp_path):
    path = tmp_path / "policies.json"
    two = b'{"provenance": {"seed": 1}, "other": {"seed": 1}}'
    for content in (b"{", b"[]", b'{"one": 3}', b"{}", b'{"one": []}', b"\xff\xfe\xff", two):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"policies\.json"):
            load_policies(path)


LAST = ["Invert", 1.0, 0.5]
MALFORMED = (
    [["Rotate", 0.5, 0.25]],
    [*SUB_POLICY, LAST],
    *([step, LAST] for step in (["Rotate", 0.5], ["Blur", 0.5, 0.25], [3, 0.5, 0.1])),
    *([["Rotate", probability, 0.1], LAST] for probability in (1.5, float("nan"), "0.5", None)),
    [["Rotate", 0.5, -0.1], LAST],
    *("ab", 7, {"Rotate": 1, "Invert": 2}, []),
)


def test_a_malformed_sub_policy_is_named(tmp_path):
    path = tmp_path / "policies.json"
    for sub_policy in MALFORMED:
        with pytest.raises(InputError, match="sub-policy 1"):
            compile_policies([SUB_POLICY, sub_policy])
        path.write_text(json.dumps({"mine": [SUB_POLICY, sub_policy]}))
        with pytest.raises(InputError, match=r"policies.json, set mine: sub-policy 1") as caught:
            load_policies(path, "mine")
        assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"data fetch policies.*search-policies"):
        load_policies(tmp_path / "policies.json")


# ---------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("policy", ["auto"]),
        ("mix", ["cutout"]),
        ("mix_alpha", [0.0, float("inf"), float("nan")]),
        ("mix_prob", [1.1, -0.1]),
    ],
)
def test_a_config_that_cannot_be(name, values):
    for value in values:
        with pytest.raises(InputError, match=f"{name}.*{value}"):
            AugmentConfig(**{name: value})


# --------------------------------------------------------------------------- AutoAugment's policy


def test_autoaugment_is_torchvisions_list_with_torchvisions_strengths():
    table, theirs = autoaugment_policies(), AutoAugment(AutoAugmentPolicy.CIFAR10)
    space = theirs._augmentation_space(10, (32, 32))
    assert table.ops.shape == (4 * len(theirs.policies), 2)
    for number, sub_policy in enumerate(theirs.policies):
        rows = slice(4 * number, 4 * number + 4)
        for step, (name, probability, level) in enumerate(sub_policy):
            assert (table.ops[rows, step] == OPERATIONS.index(name)).all()
            assert (table.probabilities[rows, step] == probability).all()
            magnitudes, signed = space[name]
            if level is None:
                continue
            strength, values = float(magnitudes[level]), table.values[rows, step].tolist()
            if name.startswith("Translate"):
                strength = int(strength) / 32  # ours is a share of the side
            if signed and name in FACTORS:
                assert sorted(values) == pytest.approx(2 * [1 - strength] + 2 * [1 + strength])
            else:
                assert values == pytest.approx(4 * [strength])


def test_its_tones_are_torchvisions_to_the_bit():
    images = sample_images()
    table = autoaugment_policies()
    for name in ("Solarize", "Posterize"):
        drawn = table.values[table.ops == OPERATIONS.index(name)].unique()
        assert len(drawn)
        for value in drawn:
            ours = apply_operation(name, images, value.expand(len(images)), torch.empty(0))
            if name == "Solarize":
                theirs = torchvision.solarize(images, float(value))
            else:
                theirs = torchvision.posterize(images, int(value))
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
def test_its_translations_are_torchvisions_to_the_bit(name):
    images, table = sample_images()[29:37], autoaugment_policies()
    drawn = table.values[table.ops == OPERATIONS.index(name)].unique()
    assert len(drawn)
    for value in [*drawn.tolist(), *(-drawn).tolist()]:
        values = torch.full((len(images),), value, dtype=torch.float64)
        ours = apply_operation(name, images, values, torch.empty(0))
        # Pillow's matrix says where a pixel comes from, torchvision's translation where it goes to.
        shift = [-int(value * 32), 0] if name == "TranslateX" else [0, -int(value * 32)]
        theirs = torchvision.affine(images, angle=0, translate=shift, scale=1, shear=[0, 0])
        assert torch.equal(ours, theirs)


def test_it_draws_both_signs_of_every_factor_and_of_every_move():
    draws = draw(autoaugment_policies(), 20_000, generator())
    for name in ("Contrast", "Rotate"):
        values = draws.values[draws.ops == OPERATIONS.index(name)]
        middle = 1 if name == "Contrast" else 0
        assert float((values > middle).double().mean()) == pytest.approx(0.5, abs=0.05)
