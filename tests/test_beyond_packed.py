"""The file of a network in integers: there and back, byte by byte, and what is refused."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from integer_networks import KINDS, images, integer_network, network_of

from micronet_lib.architecture import build
from micronet_lib.beyond import conversion
from micronet_lib.beyond.conversion import network_bytes, packed, unpacked
from micronet_lib.beyond.description import Packed
from micronet_lib.beyond.network import Widths, in_integers
from micronet_lib.beyond.packed import (
    load_packed,
    packed_sizes,
    read_packed,
    write_packed,
)
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network


@pytest.fixture(scope="module")
def small() -> Packed:
    return packed(network_of("table1_2.0-0"), recipe_id="0123456789", seed=3)


# ------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_the_same(kind):
    network = network_of(kind)
    content = network_bytes(network, recipe_id="abc")
    again = unpacked(read_packed(content, "a"))
    assert network_bytes(again, recipe_id="abc") == content
    with torch.no_grad():
        logits = network(images(16))
        assert torch.equal(again(images(16)), logits)
    assert len(logits.unique()) > 50
    for name, layer in network.layers.items():
        other = again.layers[name]
        assert torch.equal(layer.codes(), other.codes())
        assert torch.equal(layer.stored_scales(), other.stored_scales())
        for ours, theirs in zip(layer.bias_codes(), other.bias_codes(), strict=True):
            assert torch.equal(ours, theirs)
    assert score_network(again, "official").items == score_network(network, "official").items


def test_the_description_comes_back_the_same(small):
    again = read_packed(write_packed(small), "a")
    assert again.about == {"recipe_id": "0123456789", "seed": 3}
    for field in ("stem_chs", "blocks", "num_classes", "pre_bits", "point", "grids"):
        assert getattr(again, field) == getattr(small, field)
    assert list(again.layers) == list(small.layers)
    for name, layer in small.layers.items():
        for key, value in vars(layer).items():
            assert np.array_equal(getattr(again.layers[name], key), value), (name, key)


def test_biases_and_scales_of_any_size_come_back():
    """A unit times the largest integer, divided by that integer, is not always the unit."""
    _, network = integer_network(widths=8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        with torch.no_grad():
            for layer in network.layers.values():
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
                layer.scale *= torch.rand((), generator=generator) + 0.5
        network_bytes(network.eval())
    for size in (0, 5e-9, 2e-8):  # the first two are no biases
        with torch.no_grad():
            network.layers["stem.conv"].bias.copy_(size * torch.linspace(-1, 1, 8))
        network_bytes(network)


# ---------------------------------------------------------------------------------- byte by byte


def test_the_bytes_are_as_the_readme_says(small):
    """Read by hand: the start, the header, and the first layer as one long integer."""
    content = write_packed(small)
    assert content[:4] == b"MNET"
    version, size = struct.unpack("<HH", content[4:8])
    assert version == 1
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    header = json.loads(content[8 : 8 + size])
    stem = small.layers["stem.conv"]
    assert header["weights"][0] == stem.bits
    bits = int.from_bytes(content[8 + size : -32], "little")

    def take(width: int) -> int:
        nonlocal bits
        found = bits % 2**width
        bits >>= width
        return found

    def take_float() -> float:
        return struct.unpack("<f", struct.pack("<I", take(32)))[0]

    codes = stem.codes.ravel().tolist()
    masked = take(1)
    assert masked == (0 in codes)
    kept = [take(1) for _ in codes] if masked else [1] * len(codes)
    half = 2 ** (stem.bits - 1)
    for code, is_kept in zip(codes, kept, strict=True):
        stored = take(stem.bits) - half if is_kept else None
        assert code == (0 if stored is None else stored + (stored >= 0))
    assert [take(5) for _ in stem.places] == stem.places.tolist()
    assert take_float() == stem.scale
    stored = [take(stem.bias_bits) - 2 ** (stem.bias_bits - 1) for _ in stem.bias]
    assert stored == stem.bias.tolist()
    assert take_float() == stem.unit


def test_the_size_is_the_counted_storage_and_what_the_counter_leaves_out():
    for kind in KINDS:
        network = network_of(kind)
        content = network_bytes(network)
        sizes = packed_sizes(read_packed(content, "a"))
        assert sum(sizes.values()) == len(content)
        storage = score_network(network, "official").param_storage * 4
        num_grids = len(network.quantizers)
        # The counter charges 5 bytes for each quantizer and for the image.
        counted = sum(sizes[part] for part in ("masks", "weights", "scales", "biases", "units"))
        assert counted + 5 * (num_grids + 1) == pytest.approx(storage)
        assert sizes["quantizers"] <= 6 * num_grids
        assert sizes["padding"] + sizes["flags"] <= len(network.layers)


def test_a_whole_network_is_as_large_as_counted():
    network = in_integers(build("micronet_v1").eval())
    with torch.no_grad():
        for layer in network.layers.values():
            layer.weight *= torch.rand_like(layer.weight) > 0.5
    names = network.layers
    network.set_widths(
        Widths(
            dict.fromkeys(names, 4), dict.fromkeys(network.quantizers, 6), dict.fromkeys(names, 8)
        )
    )
    network.calibrate(images(2))
    content = network_bytes(network.eval(), recipe_id="0123456789", commit="0" * 40)
    storage = score_network(network, "official").param_storage * 4
    assert storage < len(content) < 1.02 * storage
    assert len(content) < 200_000


# ------------------------------------------------------------------------------------- refusals


def test_every_damage_is_noticed(small):
    content = write_packed(small)
    random = np.random.default_rng(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        with pytest.raises(InputError, match=r"^a\.mnet "):
            read_packed(bytes(damaged), "a.mnet")
    for size in (*range(100), *random.integers(100, len(content), 300).tolist()):
        with pytest.raises(InputError, match=r"^a\.mnet "):
            read_packed(content[:size], "a.mnet")
    with pytest.raises(InputError, match=r"^a\.mnet is damaged"):
        read_packed(content + b"\0", "a.mnet")


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_another_kind_of_file_and_a_newer_format(small, tmp_path):
    with pytest.raises(InputError, match="no packed network"):
        read_packed(b"PK\x03\x04" + bytes(200), "a")
    newer = bytearray(write_packed(small)[:-32])
    newer[4] = 2
    with pytest.raises(InputError, match="has format 2, and this library reads up to 1"):
        read_packed(sealed(bytes(newer)), "a")
    with pytest.raises(InputError, match="no network at"):
        load_packed(tmp_path / "a.mnet")
    with pytest.raises(InputError, match="cannot read"):
        load_packed(tmp_path)


def with_header(network: Packed, **changes: object) -> bytes:
    """A file with another header, whose digest is right."""
    content = write_packed(network)[:-32]
    (size,) = struct.unpack("<H", content[6:8])
    header = json.loads(content[8 : 8 + size]) | changes
    text = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
    return sealed(content[:6] + struct.pack("<H", len(text)) + text + content[8 + size :])


def test_the_changed_header_is_read_at_all(small):
    assert read_packed(with_header(small), "a").blocks == small.blocks


BLOCK = [8, 16, 4, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": 0}, "channels of the stem"),
        ({"stem": "8"}, "channels of the stem"),
        ({"stem": 6}, "reads 8 channels where there are 6"),
        ({"classes": 10**6}, "number of classes"),
        ({"classes": 99}, "behind its end|bits that stand for nothing|is not|not all|not a"),
        ({"classes": 200}, "ends too early"),
        ({"point": 99}, "binary point"),
        ({"point": 0.5}, "binary point"),
        ({"pre": 33}, "before HardSwish"),
        ({"pre": True}, "before HardSwish"),
        ({"blocks": []}, "no blocks"),
        ({"blocks": [[8, 16, 4]]}, "lacks an entry"),
        ({"blocks": 7}, "lacks an entry"),
        ({"blocks": [[8, 16, 4, 3, 1, 1]]}, "stride"),
        ({"blocks": [[8, 0, 4, 1, 1, 1]]}, "number of channels"),
        ({"blocks": [[8, 16, 4, 1, -1, 1]]}, "gate"),
        ({"blocks": [[8, 16, 4, 2, 1, 1]]}, "shortcut that cannot be"),
        ({"blocks": [[8, 16, 4, 1, 1, 7]]}, "shortcut that cannot be"),
        ({"blocks": [[8, 16, 4, 1, 1, 0]]}, "needs a convolution"),
        ({"blocks": [BLOCK]}, "no width"),
        ({"weights": [8]}, "no width"),
        ({"weights": None}, "lacks an entry"),
        ({"about": [1]}, "no mapping"),
    ],
)
def test_a_header_that_cannot_be_is_refused(small, changes, message):
    with pytest.raises(InputError, match=rf"^a holds no network that can run: .*({message})"):
        read_packed(with_header(small, **changes), "a")


@pytest.mark.parametrize("kind", ["weights", "biases", "inputs"])
@pytest.mark.parametrize("bits", [0, 33, -1, 2.0, True, None, "8"])
def test_a_width_that_cannot_be_is_refused(small, kind, bits):
    content = write_packed(small)[:-32]
    (size,) = struct.unpack("<H", content[6:8])
    widths = json.loads(content[8 : 8 + size])[kind]
    with pytest.raises(InputError, match=rf"the width of \S+ \({kind}\) is"):
        read_packed(with_header(small, **{kind: [*widths[:-1], bits]}), "a")


def test_no_json_and_set_padding_are_refused(small):
    content = write_packed(small)[:-32]
    (size,) = struct.unpack("<H", content[6:8])
    with pytest.raises(InputError, match="no JSON"):
        read_packed(sealed(content[:8] + b"x" * size + content[8 + size :]), "a")
    deep = b"[" * 60_000
    with pytest.raises(InputError, match="no JSON"):
        read_packed(sealed(content[:6] + struct.pack("<H", len(deep)) + deep), "a")
    with pytest.raises(InputError, match="behind its end"):
        read_packed(sealed(content + bytes(8)), "a")


def test_a_bit_that_stands_for_nothing_must_be_0(small):
    """The first layer's last byte is filled up."""
    content = bytearray(write_packed(small)[:-32])
    (size,) = struct.unpack("<H", content[6:8])
    layer = small.layers["stem.conv"]
    kept = int((layer.codes != 0).sum())
    masked = layer.codes.size if kept < layer.codes.size else 0
    num_bits = 1 + masked + kept * layer.bits + len(layer.bias) * (5 + layer.bias_bits) + 64
    assert num_bits % 8
    content[8 + size + num_bits // 8] |= 1 << 7
    with pytest.raises(InputError, match="stand for nothing"):
        read_packed(sealed(bytes(content)), "a")


def changed(network: Packed, name: str, **fields: object) -> Packed:
    if name in network.layers:
        entry = replace(network.layers[name], **fields)
        return replace(network, layers={**network.layers, name: entry})
    return replace(network, grids={**network.grids, name: replace(network.grids[name], **fields)})


STEM, HEAD, SWISH = "stem.conv", "head.quant", "blocks.0.quant_dw"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (STEM, {"bits": 0}, "width of stem.conv"),
        (STEM, {"bias_bits": 33}, "width of stem.conv"),
        (STEM, {"scale": float("nan")}, "scale of stem.conv"),
        (STEM, {"scale": 0.1}, "not a positive float32"),
        (STEM, {"scale": 1e39}, "not a positive float32"),
        (STEM, {"unit": -1.0}, "unit of stem.conv"),
        (STEM, {"codes": np.full((8, 3, 3, 3), 129)}, "weights of stem.conv are not all"),
        (STEM, {"codes": np.full((8, 3, 3, 3), 0.5)}, "no integers"),
        (STEM, {"codes": np.ones((8, 3, 3, 1), int)}, "not as many"),
        (STEM, {"places": np.full(8, 32)}, "scales of stem.conv"),
        (STEM, {"bias": np.full(8, -(2**11))}, "biases of stem.conv"),
        (STEM, {"bias": np.ones(8, int)}, "no bias of stem.conv is the largest"),
        (STEM, {"places": np.ones(8, int)}, "no filter of stem.conv has the largest scale"),
        (HEAD, {"step": float("inf")}, "step of head.quant"),
        (HEAD, {"zero": -1}, "zero of head.quant"),
        (HEAD, {"three": 5}, "no HardSwish"),
        (HEAD, {"bits": 1}, "width of head.quant"),
        (SWISH, {"three": 0}, "three of blocks.0.quant_dw"),
        (SWISH, {"shift": 31}, "shift of blocks.0.quant_dw"),
        (SWISH, {"step": 0.7}, "step and zero"),
    ],
)
def test_numbers_that_cannot_be_are_not_written(small, name, fields, message):
    with pytest.raises(InputError, match=message):
        write_packed(changed(small, name, **fields))


def test_layers_of_another_network_and_a_long_header_are_not_written(small):
    layers = {name: layer for name, layer in small.layers.items() if name != STEM}
    with pytest.raises(InputError, match="not those of its blocks"):
        write_packed(replace(small, layers=layers))
    with pytest.raises(InputError, match="header is longer"):
        write_packed(replace(small, about={"text": "x" * 70_000}))


def test_a_hard_swish_wider_than_before_it_is_not_written(small):
    with pytest.raises(InputError, match="wider after HardSwish"):
        write_packed(replace(small, pre_bits=4))


def test_only_a_network_in_integers_is_packed():
    plain, floats = integer_network(widths=None)
    with pytest.raises(InputError, match=r"only a network in integers .* a MicroNet"):
        network_bytes(plain)
    with pytest.raises(InputError, match="in floats"):
        network_bytes(floats)


def test_a_network_with_one_scale_a_layer_is_not_packed():
    """Read again, it would be charged a scale for each filter."""
    _, network = integer_network(widths=8)
    network.set_widths(replace(network.widths, shared_scales=True))
    with pytest.raises(InputError, match="one scale a layer"):
        network_bytes(network)


def test_numbers_of_float64_are_not_packed():
    """A scale has digits that the file does not hold."""
    _, network = integer_network(widths=8)
    network.double()
    with torch.no_grad():
        for layer in network.layers.values():
            layer.scale += 1e-12
    with pytest.raises(InputError, match="not a positive float32"):
        network_bytes(network)


@pytest.mark.parametrize("part", ["bias", "grid"])
def test_a_network_that_does_not_come_back_the_same_is_refused(monkeypatch, part):
    _, network = integer_network(widths=8)
    honest = conversion.unpacked

    def careless(packed):
        made = honest(packed)
        with torch.no_grad():
            if part == "bias":
                made.layers["stem.conv"].bias *= 2
            else:
                made.quantizers["head.quant"].step *= 2
        return made

    assert network_bytes(network)
    monkeypatch.setattr(conversion, "unpacked", careless)
    with pytest.raises(InputError, match="does not come back the same"):
        network_bytes(network)
