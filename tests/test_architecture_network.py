"""The contract: every registered network knows its classifier and how to be built again."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from small_networks import TORCHVISION, network
from torch import nn

from micronet_lib.architecture import (
    NETWORKS,
    NetworkSpec,
    Wrapped,
    build,
    register,
    weight_kinds,
)
from micronet_lib.architecture import network as contract
from micronet_lib.architecture.micronet import ARCHITECTURES, Architecture, MicroNet, Stage
from micronet_lib.architecture.network import takes
from micronet_lib.errors import InputError
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import apply_masks, magnitude_masks, prunable_weights
from micronet_lib.scoring.dead_channels import SAVINGS, apply_savings
from micronet_lib.srip.penalty import SripConfig, srip_network_penalty, srip_weights

TRIMMED = [list(SAVINGS)[:count] for count in range(1, len(SAVINGS) + 1)]
TINY = Architecture("tiny", (Stage(12, 1), Stage(16, 2, 2)), 2.0, stem_chs=8, num_classes=7)


def through_json(spec: NetworkSpec) -> NetworkSpec:
    return NetworkSpec(**json.loads(json.dumps(asdict(spec))))


def on_meta(spec: NetworkSpec | str) -> contract.Network:
    with torch.device("meta"):
        return build(spec)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------- the registry


def test_every_registered_network_is_built_again_from_its_spec() -> None:
    assert set(ARCHITECTURES) < set(NETWORKS)
    for name in (*ARCHITECTURES, *TORCHVISION):
        model = on_meta(name)
        assert model.spec == through_json(model.spec) == NetworkSpec(name)
        assert shapes(on_meta(model.spec)) == shapes(model)


@pytest.mark.parametrize("name", ["c_efficientnet_3.0", *TORCHVISION])
def test_a_network_has_one_exit_and_its_classifier_is_the_last_layer(name: str) -> None:
    model = build(name).eval()
    images = torch.randn(2, 3, 32, 32)
    seen = []
    model.classifier.register_forward_hook(lambda _layer, _inputs, logits: seen.append(logits))
    (logits,) = model.exits(images)
    assert logits.shape == (2, 100)
    assert seen[0] is logits


def test_options_override_and_are_in_the_spec() -> None:
    model = build("c_efficientnet_3.0", width_mult=0.25)
    assert model.spec == NetworkSpec("c_efficientnet_3.0", {"width_mult": 0.25})
    assert model.stem.conv.out_channels == 8
    assert build(model.spec, width_mult=0.5).stem.conv.out_channels == 16
    assert build(model.spec, width_mult=1.0).spec == NetworkSpec("c_efficientnet_3.0")


@pytest.mark.parametrize("options", [{"width": 0.25}, {"width_mult": "wide"}, {"cut_blocks": [{}]}])
@pytest.mark.parametrize("name", ["micronet_v1", "torchvision_resnet18"])
def test_an_option_that_the_network_does_not_have_is_refused(name: str, options: dict) -> None:
    with pytest.raises(InputError, match=name):
        build(name, **options)


@pytest.mark.parametrize(
    ("model", "known"),
    [("resnet", "depth, blocks"), ("mobilenet_v1", "num_classes, width_mult")],
)
def test_an_unknown_option_is_answered_with_the_known_ones(model: str, known: str) -> None:
    with pytest.raises(InputError, match=f"option of {model} 'tweak'; choose from {known}"):
        build(model, tweak=1)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="micronet_v1"):
        build("micronet_v3")
    with pytest.raises(InputError, match="micronet_v1"):
        register("micronet_v1")(MicroNet)
    with pytest.raises(InputError, match="0"):
        Wrapped(nn.Sequential(nn.Conv2d(3, 3, 1)), "0")
    with pytest.raises(InputError, match="fc"):
        Wrapped(nn.Sequential(nn.Linear(3, 3)), "fc")
    with pytest.raises(TypeError, match="Network"):
        _ = contract.Network().classifier


def test_the_architecture_is_looked_up_when_the_network_is_built(monkeypatch) -> None:
    small = Architecture("micronet_v1", TINY.stages, 2.0, stem_chs=8)
    monkeypatch.setitem(ARCHITECTURES, "micronet_v1", small)
    model = build("micronet_v1")
    assert model.architecture == small
    assert model.spec == NetworkSpec("micronet_v1")


@pytest.mark.parametrize(("name", "pointwise"), list(zip(TORCHVISION, (3, 34), strict=True)))
def test_srip_and_pruning_take_a_network_of_another_library(name: str, pointwise: int) -> None:
    model = build(name)
    chosen = srip_weights(model, "pointwise")
    assert len(chosen) == pointwise
    assert srip_network_penalty(chosen, SripConfig()) > 0
    weights = prunable_weights(model)
    assert len(srip_weights(model, "all")) == len(weights)
    apply_masks(model, magnitude_masks(weights, 0.6))
    table = density_table(model, "kind").set_index("kind")
    assert table.loc["all", "sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert set(table.index) == {*weight_kinds(model).values(), "all"}


# --------------------------------------------------------------------------- specs of MicroNets


@pytest.mark.parametrize("savings", [*TRIMMED, ["sixth"]], ids="-".join)
@pytest.mark.parametrize("name", ["micronet_v1_released", "tiny"])
def test_a_trimmed_network_is_built_again_from_its_spec(name: str, savings: list[str]) -> None:
    model = MicroNet(TINY).eval() if name == "tiny" else network(name).eval()
    for block in model.blocks:
        block.conv_project.weight.data[:, :3] = 0
    trimmed = apply_savings(model, savings)
    again = build(through_json(trimmed.spec)).eval()
    assert again.architecture == trimmed.architecture
    assert again.spec == trimmed.spec
    again.load_state_dict(trimmed.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), trimmed(images))
    if "dead_channels" in savings:
        assert trimmed.blocks[1].config.hidden_chs <= model.blocks[1].config.hidden_chs - 3
    if savings == ["sixth"]:  # in the spec although no shape changes
        assert shapes(trimmed) == shapes(model)
        assert trimmed.spec != model.spec


def test_an_architecture_of_no_registered_name_has_a_spec_too() -> None:
    model = MicroNet(TINY)
    assert build(through_json(model.spec)).architecture == TINY
    assert copy.deepcopy(model).spec == model.spec


def test_an_option_is_one_that_the_function_names(monkeypatch):
    monkeypatch.setitem(NETWORKS, "open", lambda **options: build("micronet_v1", **options))
    assert not takes("open", "width_mult")
    assert takes("micronet_v1", "width_mult")
    assert not takes(TORCHVISION[0], "width_mult")


def test_parts_run_a_module_as_often_as_it_occurs():
    act = nn.ReLU()
    layers = [nn.Conv2d(3, 4, 3, 2), act, nn.Conv2d(4, 4, 3, 2), act]
    made = contract.Wrapped(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)), "6"
    )
    x = image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for part in made.parts.values():
        x = part(x)
    assert torch.equal(x, made(image))
