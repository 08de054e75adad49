"""Where the zeros are, against the published networks, and what the rules charge for masks."""

import pytest
import torch
from published_data import require
from published_format import pruned_network
from small_networks import network
from torch import nn

from micronet_lib.architecture.layers import KINDS
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.records.tables import paper
from micronet_lib.lab.storage.published import from_kaist, load_published, read_state
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import apply_masks, current_masks, magnitude_masks, prunable_weights
from micronet_lib.scoring.bill import score_network

NETWORK_KINDS = KINDS[:7]
SIZES = {  # by kind of layer
    "micronet_v1": (864, 174_912, 23_976, 187_536, 18_416, 34_152, 10_600),
    "micronet_v2": (864, 180_000, 22_320, 192_680, 22_048, 41_872, 11_400),
}


def published(name: str):
    path = checkpoint_path(f"micronet_{name}")
    require(path)
    return path


# -------------------------------------------------------------------------- the published networks


@pytest.mark.parametrize(
    ("name", "zeros"),
    [
        ("v1_pr_60", (0.176, 0.693, 0.249, 0.627, 0.518, 0.446, 0.057, 0.6000)),
        ("v2_pr_30", (0.067, 0.355, 0.119, 0.308, 0.268, 0.217, 0.026, 0.3000)),
        ("v2_pr_60", (0.242, 0.670, 0.275, 0.631, 0.548, 0.509, 0.080, 0.6000)),
    ],
)
def test_zeros_of_the_published_networks(name, zeros):
    table = density_table(load_published(published(name)), "kind").set_index("kind")
    assert list(table.index) == [*NETWORK_KINDS, "all"]
    assert tuple(table["num_weights"][:-1]) == SIZES[f"micronet_{name[:2]}"]
    assert list(table["sparsity"][:-1]) == pytest.approx(list(zeros[:-1]), abs=5e-4)
    assert table["sparsity"]["all"] == pytest.approx(zeros[-1], abs=1e-6)
    target = int(name[-2:]) / 100
    assert table["num_zeros"]["all"] == round(target * table["num_weights"]["all"])
    counted = paper("pruning").query("point == @name").set_index("metric")["value"]
    assert table["num_zeros"].add_prefix("zeros_").to_dict() == counted.to_dict()


@pytest.mark.parametrize("name", ["v1_pr_60", "v2_pr_30", "v2_pr_60"])
def test_the_transcribed_counts_are_whole_and_add_up(name):
    counted = paper("pruning").query("point == @name").set_index("metric")["value"]
    assert list(counted.index) == [f"zeros_{kind}" for kind in (*NETWORK_KINDS, "all")]
    assert counted[:-1].sum() == counted["zeros_all"]
    sizes = SIZES[f"micronet_{name[:2]}"]
    assert all(0 < zeros < size for zeros, size in zip(counted, sizes, strict=False))
    assert counted["zeros_all"] == round(int(name[-2:]) / 100 * sum(sizes))


def test_the_published_masks_are_the_zeros_and_nested():
    found = {}
    for name in ("v1_pr_60", "v2_pr_30", "v2_pr_60"):
        path = published(name)
        masks = from_kaist(read_state(path))[1]
        found[name] = current_masks(load_published(path))
        assert masks.keys() == found[name].keys()
        assert all(torch.equal(masks[key] != 0, mask) for key, mask in found[name].items())
    less, more = found["v2_pr_30"], found["v2_pr_60"]
    assert sum((less[name] & ~more[name]).sum().item() for name in less) > 140_000
    assert not any((more[name] & ~less[name]).any() for name in less)


@pytest.mark.parametrize(("name", "more"), [("v1_pr_60", {"head.classifier"}), ("v2_pr_60", set())])
def test_the_layers_whose_masks_cost_more_than_their_zeros_save(name, more):
    """Chapter 05 names them: below one zero in 16."""
    table = density_table(load_published(published(name))).set_index("layer")
    below = table.index[table["sparsity"] < 1 / 16]
    assert set(below) == {f"blocks.{block}.conv_dw" for block in (2, 7, 12)} | more


# --------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
def test_layers_and_kinds_count_the_same_zeros(sparsity):
    model = network()
    masks = magnitude_masks(prunable_weights(model), sparsity)
    apply_masks(model, masks)
    layers, kinds = density_table(model), density_table(model, "kind").set_index("kind")
    assert list(layers["layer"]) == [*(name.removesuffix(".weight") for name in masks), "all"]
    assert list(layers["num_zeros"][:-1]) == [int((~mask).sum()) for mask in masks.values()]
    sums = layers.groupby("kind")[["num_weights", "num_zeros"]].sum()
    assert sums.loc[kinds.index].equals(kinds[["num_weights", "num_zeros"]])
    assert kinds["num_zeros"]["all"] == round(sparsity * 450_456)
    for table in (layers, kinds):
        assert (table["sparsity"] == table["num_zeros"] / table["num_weights"]).all()
        assert (table["density"] == 1 - table["sparsity"]).all()
    kept = current_masks(model)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())


def test_zeros_by_hand_in_a_network_of_another_make():
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Conv2d(2, 2, 1), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[0.0, -0.0]], [[1.0, torch.nan]]]))
        model[1].weight.fill_(3)
        model[2].weight.copy_(torch.tensor([[0.0, 1e-40], [0.0, 0.0]]))
    table = density_table(model, "kind")
    assert table["kind"].tolist() == ["fc", "pointwise", "other", "all"]
    assert table["num_zeros"].tolist() == [3, 0, 2, 5]
    assert table["sparsity"].tolist() == [0.75, 0.0, 0.5, 5 / 12]
    assert table["num_zeros"].dtype == table["num_weights"].dtype == "int64"
    with pytest.raises(InputError, match="choose from layer, kind"):
        density_table(model, "stage")


# ----------------------------------------------------------------------------- what the masks cost


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        *(("micronet_v1", None), ("c_efficientnet_1.5", None)),
        *(("micronet_v1_released", 14_076.75), ("micronet_v2_released", 14_724.5)),
    ],
)
def test_masks_cost_what_the_published_rules_charge(name, positions):
    for sparsity in (0.0, 0.6):
        model = pruned_network(name, sparsity)
        cost = sum(weight.numel() for weight in prunable_weights(model).values()) / 32
        assert cost == score_network(model, "published").mask_params
        assert score_network(model, "official").mask_params == (cost if sparsity else 0)
        assert positions in (None, cost)
