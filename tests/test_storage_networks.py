"""A network goes to a file and comes back, with its recipe and score; anything else is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from micronet_lib.lab.running.runs import fresh_network
from published_format import pruned_network, published_state, save

from micronet_lib.__main__ import main
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.storage.networks import export_network, load_exported, load_network
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import apply_masks, magnitude_masks, prunable_weights
from micronet_lib.scoring.bill import score_network

RECIPE = PROFILES["smoke"].apply(SWEEPS["stages"].point("3.0-cutmix").recipe)


@pytest.fixture
def model():
    model = fresh_network(RECIPE, 0).eval()
    apply_masks(model, magnitude_masks(prunable_weights(model), 0.6))
    return model


def test_a_network_comes_back_with_its_recipe_and_score(tmp_path, model):
    path = tmp_path / "a.safetensors"
    told = export_network(model, RECIPE, path, top1=0.5)
    again, metadata = load_exported(path)
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert metadata == json.loads(json.dumps(told))
    assert metadata["recipe"] == json.loads(json.dumps(asdict(RECIPE)))
    assert metadata["top1"] == 0.5
    assert metadata["score"]["score"] == score_network(again, "published").score
    assert not again.training


def test_the_ending_tells_the_format(tmp_path, model):
    export_network(model, RECIPE, tmp_path / "a.safetensors")
    published = pruned_network("micronet_v1_released")
    path = save(published_state(published), tmp_path / "b.t7", as_zip=False)
    assert load_network(tmp_path / "a.safetensors").architecture == model.architecture
    assert load_network(path).architecture.name == "micronet_v1_released"


@pytest.mark.parametrize("fault", ["cut", "text", "empty"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, model, fault):
    path = tmp_path / "a.safetensors"
    export_network(model, RECIPE, path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-100], "text": b"no network", "empty": b""}[fault])
    with pytest.raises(InputError, match="is damaged or no network of this library") as caught:
        load_exported(path)
    assert "\n" not in str(caught.value)


def test_another_networks_weights_and_missing_files_are_refused(tmp_path, model):
    path = tmp_path / "a.safetensors"
    export_network(model, replace(RECIPE, width_mult=0.5), path)
    with pytest.raises(InputError, match="no network of this library"):
        load_exported(path)
    with pytest.raises(InputError, match="no network at"):
        load_exported(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"end it in \.safetensors"):
        export_network(model, RECIPE, tmp_path / "a.pt")
    model.stem.conv.weight.data[0, 0, 0, 0] = torch.nan
    export_network(model, RECIPE, path)
    with pytest.raises(InputError, match="NaN or infinite"):
        load_exported(path)


@pytest.mark.parametrize(
    ("sweep", "point"), [("srip_placement", "none"), ("pipeline", "0.15")], ids=["dense", "pruned"]
)
def test_the_command_line_exports_evaluates_and_scores(tmp_path, monkeypatch, capsys, sweep, point):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    budget = {"epoch_share": 1 / 600, "num_images": 64, "num_validation": 100, "width_mult": 0.1}
    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], **budget))
    path = str(tmp_path / "trained.safetensors")
    words = ["export", sweep, path, "--point", point, "--profile", "smoke", "--json"]
    assert main(words) == 0
    exported = json.loads(capsys.readouterr().out)
    assert main(["score", "--checkpoint", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == exported["score"]
    assert main(["evaluate", "--checkpoint", path, "--dataset", "embedded", "--json"]) == 0
    rated = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / f"runs/smoke/{sweep}/{point}-s0.json").read_text())
    assert rated["correct"] == record["metrics"]["correct"]
    model, told = load_exported(Path(path))
    assert told["top1"] == record["metrics"]["top1"] == rated["top1"]
    assert told["official_score"] == record["metrics"]["official.score"]
    zeros = density_table(model)["sparsity"].iloc[-1]
    assert zeros == pytest.approx(record["metrics"].get("sparsity", 0.0), abs=1e-3)
