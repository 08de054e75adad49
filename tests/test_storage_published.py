"""Reading the files that teams published: every form they come in, and nothing else."""

import os
import pickle
import re
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from published_data import require
from published_format import authors_name, pruned_network, published_state, save
from small_networks import TORCHVISION
from torch import nn

from micronet_lib.architecture import NetworkSpec, build
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.storage.networks import load_network
from micronet_lib.lab.storage.published import (
    FORMATS,
    from_kaist,
    identify,
    load_published,
    read_state,
)

PUBLISHED = checkpoint_path("micronet_v1_pr_60")


@pytest.fixture(scope="module")
def network() -> MicroNet:
    return pruned_network()


@pytest.fixture
def state(network):
    return published_state(network)


def same_network(loaded: nn.Module, expected: nn.Module) -> bool:
    ours, theirs = loaded.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype
        for name in theirs
    )


# ------------------------------------------------------------------- what must be readable


FORMS = {
    "bare": lambda state: state,
    "under a key": lambda state: {"net4": state, "acc": 80.07},
    "acc a tensor": lambda state: {"net": state, "acc": torch.tensor(80.07)},
    "optimizer beside": lambda state: {"net": state, "optimizer": {"groups": [{"lr": 0.1}]}},
    "data parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "parameters": lambda state: {k: nn.Parameter(v, False) for k, v in state.items()},
    "bool": lambda state: {k: v.bool() if "mask" in k else v for k, v in state.items()},
    "no masks": lambda state: {k: v for k, v in state.items() if "mask" not in k},
    "double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_network(network, state, tmp_path, form):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for as_zip in (True, False):
        path = save(FORMS[form](state), tmp_path / "network.t7", as_zip=as_zip)
        loaded = load_published(path)
        assert loaded.spec == NetworkSpec("micronet_v1_released")
        assert not loaded.training
        assert same_network(loaded, network)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))


def test_the_shapes_tell_which_network_it_is(tmp_path):
    for name in ("micronet_v2_released", "micronet_v1", "c_efficientnet_1.5"):
        model = pruned_network(name)
        loaded = load_published(save(published_state(model), tmp_path / "network.t7"))
        assert loaded.spec == NetworkSpec(name)
        assert same_network(loaded, model)


def test_masks_that_nobody_applied_are_applied(network, state, tmp_path):
    dense = {
        key: torch.where(state[key.replace(".weight", ".mask")] == 0, 7.0, value)
        if key.replace(".weight", ".mask") in state and key.endswith(".weight")
        else value
        for key, value in state.items()
    }
    assert (dense["layers.3.conv2.weight"] == 7).any()
    assert same_network(load_published(save(dense, tmp_path / "network.t7")), network)


def test_the_tests_write_the_authors_format():
    require(PUBLISHED)
    theirs = read_state(PUBLISHED)
    ours = published_state(load_published(PUBLISHED))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.shape == theirs[key].shape, key
        assert value.dtype == theirs[key].dtype, key


# -------------------------------------------------------------------------- names and shapes


def test_the_library_has_the_inverse_of_the_authors_names(network, state):
    weights, masks = from_kaist(state)
    ours = network.state_dict()
    assert weights.keys() == ours.keys()
    assert masks.keys() == {name for name, value in ours.items() if value.ndim > 1}
    for name, value in weights.items():
        assert value is state[authors_name(name)]
    for key in ("stem.conv.weight", "layers.3.conv9.weight", "layers.x.conv1.weight", "weight", ""):
        with pytest.raises(InputError, match=re.escape(f"no place for the tensor {key!r}")):
            from_kaist({key: torch.ones(1)})


def test_identify_names_the_nearest_network_and_the_first_difference(network):
    shapes = dict(network.state_dict())
    shapes["head.classifier.weight"] = torch.ones(10, 106)
    with pytest.raises(InputError) as caught:
        identify(shapes)
    names = ("micronet_v1_released", "head.classifier.weight", "(10, 106)", "(100, 106)")
    assert all(name in str(caught.value) for name in names)


def test_a_team_with_another_format_is_one_function(tmp_path, monkeypatch):
    """Their names are ours with a prefix, and their network is one of torchvision's."""

    def from_others(state):
        if not all(name.startswith("theirs.") for name in state):
            raise InputError("not a file of theirs")
        return {name.removeprefix("theirs."): value for name, value in state.items()}, {}

    model = build(TORCHVISION[1]).eval()
    theirs = {f"theirs.{name}": value for name, value in model.state_dict().items()}
    path = save(theirs, tmp_path / "network.pt")
    with pytest.raises(InputError, match=r"no place for the tensor 'theirs\."):
        load_published(path)
    monkeypatch.setitem(FORMATS, "others", from_others)
    loaded = load_published(path)
    assert loaded.spec == NetworkSpec(TORCHVISION[1])
    assert same_network(loaded, model)
    ours = save(published_state(pruned_network()), tmp_path / "ours.pt")
    assert load_published(ours).spec == NetworkSpec("micronet_v1_released")
    with pytest.raises(InputError, match="not a file of theirs"):
        load_published(save({"x.weight": torch.ones(1)}, path))


# --------------------------------------------------------------------------- as people save them


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "beside",
    [
        *(np.float64(0.8), np.float32(1), np.int64(3), np.uint8(3), np.bool_(True), np.float16(2)),
        *(np.arange(6).reshape(2, 3), np.array([], np.float32), [np.float64(1), (np.int32(2),)]),
        Namespace(lr=0.1, best=np.float64(0.8), args=Namespace(epochs=np.int64(3))),
        {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    ],
    ids=lambda beside: type(beside).__name__,
)
def test_data_beside_the_network_is_read(beside, as_zip, network, state, tmp_path):
    content = {"net": state, "beside": beside, "epoch": 3}
    path = save(content, tmp_path / "network.t7", as_zip=as_zip)
    assert same_network(load_published(path), network)


@pytest.mark.parametrize(
    "beside", [nn.Linear(1, 1), sorted, os.system, datetime.now(UTC), Path("a")]
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_what_else_a_file_asks_for_is_named_and_not_run(beside, as_zip, state, tmp_path):
    path = save({"net": state, "beside": beside}, tmp_path / "network.t7", as_zip=as_zip)
    message = refusal(path)
    kind = beside if callable(beside) and not isinstance(beside, nn.Module) else type(beside)
    assert kind.__name__ in message
    assert "nothing of it was executed" in message


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("wrapped", ["{}", "module.{}"])
@pytest.mark.parametrize(
    "name", ["micronet_v1", "micronet_v2_released", "table1_2.0", *TORCHVISION]
)
def test_a_plain_state_dict_of_ours_is_read(name, wrapped, seed, tmp_path):
    torch.manual_seed(seed)
    model = build(name).eval()
    state = {wrapped.format(key): value for key, value in model.state_dict().items()}
    for content in (state, {"net": state, "top1": np.float64(0.8)}):
        loaded = load_network(save(content, tmp_path / "network.pt"))
        assert loaded.spec == NetworkSpec(name)
        assert same_network(loaded, model)
    damaged = {key: value * torch.nan for key, value in state.items()}
    with pytest.raises(InputError, match="NaN"):
        load_network(save(damaged, tmp_path / "network.pt"))
    del state[next(iter(state))]
    with pytest.raises(InputError, match=f"nearest is {re.escape(name)} with 1 difference"):
        load_network(save(state, tmp_path / "network.pt"))


# --------------------------------------------------------------------------- what is refused


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        load_published(path)
    message = str(caught.value)
    assert str(path) in message
    return message


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_whatever_the_damage_the_file_is_refused_in_one_sentence(tmp_path, as_zip):
    """One byte altered, or the file cut there, at places spread over all of it."""
    few = {f"layers.{i}.bn1.bias": torch.ones(4) for i in range(3)}
    whole = save(few, tmp_path / "network.t7", as_zip=as_zip).read_bytes()
    path = tmp_path / "damaged.t7"
    refusals = []
    for place in range(0, len(whole), max(1, len(whole) // 250)):
        for damaged in (whole[:place], whole[:place] + b"\x28" + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read_state(path)
            except InputError as error:
                refusals.append(str(error))
    assert len(refusals) > 250
    assert all(message.startswith(str(path)) for message in refusals)


def test_what_is_no_dictionary_of_dense_tensors_holds_no_network(tmp_path):
    for content in (
        *({}, [torch.ones(1)], torch.ones(3), {"linear.weight": 3.0}, {0: torch.ones(1)}),
        {"a": {"b": {"linear.weight": torch.ones(1)}}},
        {"linear.weight": torch.eye(3).to_sparse()},
        {"linear.weight": torch.ones(3, device="meta")},
        {"linear.weight": torch.ones(3, dtype=torch.complex64)},
    ):
        assert "holds no network" in refusal(save(content, tmp_path / "network.t7"))


def test_what_else_is_refused(network, state, tmp_path):
    assert "no checkpoint at" in refusal(tmp_path / "nowhere.t7")
    assert "data fetch kaist" in refusal(tmp_path)
    path = tmp_path / "network.t7"
    for names in (("a", "b"), (1, 2)):
        both = {name: {"linear.bias": state["linear.bias"]} for name in names}
        assert "2 networks ({}, {})".format(*names) in refusal(save(both, path))
    extra = torch.ones(1)
    message = refusal(save({**state, "layers.99.conv1.mask": extra}, path))
    assert "blocks.99.conv_expand.weight" in message
    torch.save(network, path)  # loading a whole module would run code
    assert "nothing of it was executed" in refusal(path)


def test_values_that_are_not_finite_and_masks_that_do_not_fit(state, tmp_path):
    for key, alter, says in (
        ("linear.weight", lambda v: v * torch.nan, "head.classifier.weight holds NaN or infinite"),
        ("bn1.running_var", lambda v: v / 0, "stem.bn.running_var holds NaN or infinite"),
        ("linear.bias", lambda v: v.double() + 1e300, "head.classifier.bias holds NaN or infinite"),
        ("conv1.mask", lambda v: v * torch.nan, "stem.conv.weight holds NaN or infinite"),
        ("conv1.mask", lambda v: v[:1], "mask of stem.conv.weight"),
    ):
        altered = {**state, key: alter(state[key])}
        assert says in refusal(save(altered, tmp_path / "network.t7"))


def test_reading_never_unpickles_freely(state, tmp_path, monkeypatch):
    """The safe reader stays the only one, whatever torch's default is."""

    def forbidden(*args, **kwargs):
        raise AssertionError("an unrestricted unpickler was made")

    path = save(state, tmp_path / "network.t7", as_zip=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(pickle, "load", forbidden)
    assert read_state(path).keys() == state.keys()
