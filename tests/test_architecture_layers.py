"""One vocabulary: every layer of every network has a kind, by its name or by its shape."""

from collections import Counter

import pytest
from small_networks import TORCHVISION, network
from torch import nn

from micronet_lib.architecture import KINDS, POINTWISE, build, layer_kind, weight_kinds
from micronet_lib.architecture.layers import named_kind

RESNET, MOBILENET = TORCHVISION


def test_pointwise_kinds_are_kinds() -> None:
    assert set(POINTWISE) < set(KINDS)


@pytest.mark.parametrize("name", ["micronet_v1_released", "micronet_v2"])
def test_the_names_of_a_micronet_tell_what_its_layers_are(name: str) -> None:
    model = network(name)
    kinds = weight_kinds(model)
    assert {"other", "pointwise"}.isdisjoint(kinds.values())
    assert set(kinds.values()) == set(KINDS) - {"other", "pointwise"}
    for weight, kind in kinds.items():
        assert named_kind(weight.removesuffix(".weight")) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stem.conv", "conv"),
        ("blocks.3.conv_dw", "depthwise"),
        ("blocks.3.conv_expand", "expand"),
        ("blocks.3.se.conv_expand", "se"),
        ("blocks.3.se.pool", "se"),
        ("head.classifier", "fc"),
        ("layer2.0.downsample.0", "shortcut"),
        ("head.pool", "other"),
        ("", "other"),
    ],
)
def test_kinds_by_name(name: str, kind: str) -> None:
    assert named_kind(name) == kind


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 2), "fc"),
        (nn.Conv2d(4, 8, 1), "expand"),
        (nn.Conv2d(8, 4, 1), "project"),
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        (nn.Conv2d(8, 8, 3, groups=2), "conv"),
        (nn.Conv2d(1, 8, 3), "conv"),
        (nn.BatchNorm2d(8), None),
    ],
)
def test_kinds_by_shape(layer: nn.Module, kind: str | None) -> None:
    assert layer_kind("0.1", layer) == kind


def test_torchvisions_networks_have_sensible_kinds() -> None:
    resnet, mobilenet = map(weight_kinds, (build(RESNET), build(MOBILENET, width_mult=1.0)))
    assert Counter(resnet.values()) == {"conv": 17, "shortcut": 3, "fc": 1}
    assert Counter(mobilenet.values()) == {
        **{"conv": 1, "depthwise": 17, "expand": 17, "project": 17, "fc": 1}
    }
