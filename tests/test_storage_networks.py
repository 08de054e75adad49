"""A network goes to a file and comes back, with what there is to say of it; else it is refused."""

import itertools
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from integer_networks import images, integer_network, network_of
from published_format import pruned_network, published_state, save
from small_networks import TORCHVISION, network
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.__main__ import main
from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.architecture import NetworkSpec, build
from micronet_lib.beyond.adaptive_rounding import RoundAdaptively
from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.beyond.packed import load_packed
from micronet_lib.early_exit import AddExit, ExitLoss
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import measure
from micronet_lib.lab.storage.networks import (
    export_network,
    load_exported,
    load_network,
    pack,
    restore,
)
from micronet_lib.lab.storage.states import save_own
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import apply_masks, magnitude_masks, prunable_weights
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.scoring.dead_channels import SAVINGS, apply_savings
from micronet_lib.ternary import Ternarize

RECIPE = PROFILES["smoke"].apply(SWEEPS["stages"].point("3.0-cutmix").recipe)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    model = build("c_efficientnet_3.0", width_mult=0.25).eval()
    apply_masks(model, magnitude_masks(prunable_weights(model), 0.6))
    return model


def same_network(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name])
        for name, value in ours.items()
    )


# ------------------------------------------------------------------------- there and back


def test_a_network_comes_back_with_its_recipe_and_what_else_was_said(tmp_path, model):
    path = tmp_path / "a.safetensors"
    said = export_network(model, path, RECIPE, top1=0.5, score={"score": 0.01})
    again, metadata = load_exported(path)
    assert same_network(again, model)
    assert not again.training
    assert metadata == json.loads(json.dumps(said))
    assert metadata["spec"] == asdict(model.spec)
    assert metadata["recipe"] == json.loads(json.dumps(asdict(RECIPE)))
    assert metadata["recipe_id"] == recipe_id(RECIPE)
    assert metadata["top1"] == 0.5


ALL_SAVINGS = [list(SAVINGS)[:count] for count in range(len(SAVINGS) + 1)]


# The sixth alone changes no shape, only the function: the spec decides.
@pytest.mark.parametrize("names", [*ALL_SAVINGS, ["sixth"]], ids="-".join)
def test_a_trimmed_network_comes_back_as_the_same_function(tmp_path, names):
    model = network().eval()
    apply_masks(model, magnitude_masks(prunable_weights(model), 0.95))
    trimmed = apply_savings(model, names)
    export_network(trimmed, tmp_path / "a.safetensors")
    again, metadata = load_exported(tmp_path / "a.safetensors")
    assert again.spec == trimmed.spec
    assert same_network(again, trimmed)
    assert torch.equal(again(IMAGES), trimmed(IMAGES))
    assert "recipe" not in metadata


def test_networks_of_another_library_precision_and_layout_come_back(tmp_path, model):
    path = tmp_path / "a.safetensors"
    for name in TORCHVISION:
        other = build(name).eval()
        export_network(other, path)
        again = load_network(path)
        assert again.spec == NetworkSpec(name)
        assert same_network(again, other)
        assert torch.equal(again(IMAGES), other(IMAGES))
    for dtype in (torch.float64, torch.bfloat16):
        model = model.to(dtype).to(memory_format=torch.channels_last)
        export_network(model, path)
        assert same_network(load_network(path), model)


def test_every_kind_of_file_is_loaded_by_its_content(tmp_path, model):
    export_network(model, tmp_path / "a.safetensors")
    save_own(tmp_path / "b.pt", "any key", {**pack(model), "curve": {}})
    published = pruned_network("micronet_v1_released")
    save(published_state(published), tmp_path / "c.t7", as_zip=False)
    for name, expected in (("a.safetensors", model), ("b.pt", model), ("c.t7", published)):
        loaded = load_network(tmp_path / name)
        assert loaded.spec == expected.spec
        assert same_network(loaded, expected)
        assert not loaded.training


def test_a_network_in_integers_is_packed_and_loaded(tmp_path):
    model, path = network_of("trimmed"), tmp_path / "a.mnet"
    said = export_network(model, path, RECIPE, seed=2, top1=0.5)
    assert said == {"recipe_id": recipe_id(RECIPE), "seed": 2, "commit": said["commit"]}
    assert load_packed(path).about == said
    again = load_network(path)
    assert not again.training
    assert torch.equal(again(images(4)), model(images(4)))
    export_network(again, tmp_path / "a.safetensors")
    restored = load_network(tmp_path / "a.safetensors")
    assert torch.equal(restored(images(4)), model(images(4)))


# ------------------------------------------------------------------------- what is refused


def test_only_a_network_in_integers_is_packed(tmp_path, model):
    for other in (model, integer_network(widths=None)[1]):
        with pytest.raises(InputError, match=r"a\.mnet: .*integers|a\.mnet: .*floats") as caught:
            export_network(other, tmp_path / "a.mnet")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_file_is_refused_in_one_line(tmp_path, model):
    exported, own = tmp_path / "a.safetensors", tmp_path / "b.pt"
    export_network(model, exported)
    save_own(own, "key", {"epoch": 3})
    no_network = own.read_bytes()
    save_own(own, "key", pack(model))
    cut = own.read_bytes()[:-1]
    damaged = {exported: (exported.read_bytes()[:-100], b"no network", b""), own: (no_network, cut)}
    for path, contents in damaged.items():
        for content in (*contents, None):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
            with pytest.raises(InputError, match=re.escape(path.name)) as caught:
                load_network(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"\.safetensors"):
        export_network(model, tmp_path / "a.pt")


def test_tensors_of_another_network_are_refused(model):
    stored = pack(model)
    with pytest.raises(InputError, match="c_efficientnet_3"):
        restore({"name": "c_efficientnet_3.0"}, stored["model"])
    with pytest.raises(InputError, match="c_efficientnet_3"):
        restore(stored["spec"], {})
    with pytest.raises(InputError, match="unregistered"):
        restore({"name": "unregistered"}, stored["model"])
    model.stem.conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        restore(stored["spec"], model.state_dict())


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
    model, metadata = load_exported(Path(path))
    assert metadata["top1"] == record["metrics"]["top1"] == rated["top1"]
    assert metadata["official_score"] == record["metrics"]["official.score"]
    assert metadata["score"]["score"] == exported["score"]
    zeros = density_table(model)["sparsity"].iloc[-1]
    assert zeros == pytest.approx(record["metrics"].get("sparsity", 0.0), abs=1e-3)


def test_what_no_file_can_hold_is_known_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    plain = SWEEPS["stages"].point("3.0-cutmix").recipe
    twice = replace(plain, start=plain)
    points = {
        "integers": replace(twice, changes=(Quantize(5, 7),)),
        "allocated": replace(twice, changes=(Allocate(),)),
        "adaptive": replace(twice, changes=(RoundAdaptively(),)),
        "ternary": replace(twice, changes=(Ternarize(),)),
        "adjusted": replace(twice, changes=(Adjust(),)),
        "exits": replace(
            twice, changes=(Quantize(5, 7), AddExit(after="blocks.0")), exits=ExitLoss(1.0)
        ),
        "exits_of_floats": replace(
            twice, changes=(PruneTo(0.3), AddExit(after="blocks.0")), exits=ExitLoss(1.0)
        ),
        "floats": replace(twice, changes=(PruneTo(0.3),)),
    }
    monkeypatch.setitem(SWEEPS, "toy", sweep_of(**points))
    monkeypatch.setattr(measure, "trained", lambda *given: pytest.fail("trained", pytrace=False))
    with tiny_lab(tmp_path) as lab:
        (lab.data / "kaist").mkdir(parents=True)
        save(published_state(pruned_network()), lab.data / "kaist" / "theirs.t7")
        # Narrower, the first block would have as many channels as the stem.
        monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], width_mult=0.25))
        refused = {suffix: set() for suffix in (".mnet", ".onnx")}
        for name, suffix in itertools.product(points, refused):
            words = ["export", "toy", str(tmp_path / f"a{suffix}"), "--point", name]
            try:
                assert main([*words, "--profile", "smoke"]) == 2
            except pytest.fail.Exception:
                continue
            assert ".safetensors holds any network" in capsys.readouterr().err
            refused[suffix].add(name)
    assert refused[".mnet"] == {"ternary", "adjusted", "exits", "exits_of_floats", "floats"}
    assert refused[".onnx"] == set(points) - {"floats"}


def test_a_file_of_an_early_exit_says_which_accuracy_is_which(tmp_path, monkeypatch, capsys):
    plain = SWEEPS["stages"].point("3.0-cutmix").recipe
    exits = replace(SWEEPS["exit_training"].point("frozen").recipe, start=plain)
    exits = replace(exits, changes=(AddExit("blocks.0", 5),))
    sweep = replace(sweep_of(exits=exits), measures=("early_exit",))
    monkeypatch.setitem(SWEEPS, "toy", sweep)
    words = ["--point", "exits", "--profile", "smoke", "--json"]
    path, other = str(tmp_path / "a.safetensors"), str(tmp_path / "a.onnx")
    with tiny_lab(tmp_path) as lab:
        assert main(["export", "toy", other, *words]) == 2
        line = json.loads(capsys.readouterr().out)["error"]
        assert "early_exit has 2 exits, and .onnx would hold the last one alone" in line
        assert lab.trained == []
        assert main(["export", "toy", path, *words]) == 0, capsys.readouterr().err
        exported = json.loads(capsys.readouterr().out)
        assert main(["evaluate", "--checkpoint", path, "--dataset", "embedded", "--json"]) == 0
        rated = json.loads(capsys.readouterr().out)
        assert main(["evaluate", "--checkpoint", path, "--runtime", "openvino", "--json"]) == 2
        assert "has 2 exits" in json.loads(capsys.readouterr().out)["error"]
        again, metadata = load_exported(Path(path))
        alone = evaluate(again, load_split("embedded", "test").first(100)).top1
    metrics = json.loads((lab.runs / "smoke/toy/exits-s0.json").read_text())["metrics"]
    assert metadata["top1"] == exported["top1"] == metrics["last_top1"] == alone
    assert metadata["top1_with_exits"] == metrics["top1"]
    assert metadata["expected_score"] == metrics["official.expected_score"]
    for name in ("threshold", "exit_rate"):
        assert metadata[name] == metrics[name]
    assert rated["rated"] == "the last of 2 exits"
    assert exported["bytes"] == Path(path).stat().st_size


def test_a_published_network_is_exported_as_it_is(tmp_path, monkeypatch, capsys):
    """It trains nothing; a network without any training is nothing to export."""
    sweep = sweep_of(theirs=Recipe(checkpoint="theirs"), fresh=Recipe())
    monkeypatch.setitem(SWEEPS, "toy", sweep)
    path = tmp_path / "a.safetensors"
    with tiny_lab(tmp_path) as lab:
        model = pruned_network()
        (lab.data / "kaist").mkdir(parents=True)
        save(published_state(model), lab.data / "kaist" / "theirs.t7")
        words = ["export", "toy", str(path), "--profile", "smoke", "--point"]
        assert main([*words, "theirs"]) == 0, capsys.readouterr().err
        assert main([*words, "fresh"]) == 2
    assert "trains nothing" in capsys.readouterr().err
    assert same_network(load_exported(path)[0], model)


def test_a_network_that_the_authors_counter_cannot_price_is_exported(tmp_path, monkeypatch, capsys):
    plain = SWEEPS["stages"].point("3.0-cutmix").recipe
    monkeypatch.setitem(SWEEPS, "toy", sweep_of(resnet=replace(plain, model="resnet")))
    path = tmp_path / "a.safetensors"
    words = ["export", "toy", str(path), "--point", "resnet", "--profile", "smoke", "--json"]
    with tiny_lab(tmp_path):
        assert main(words) == 0, capsys.readouterr().err
    exported = json.loads(capsys.readouterr().out)
    metadata = load_exported(path)[1]
    assert "score" not in exported.keys() | metadata.keys()
    assert metadata["official_score"] == exported["official_score"] > 0


def test_the_command_line_packs_and_runs_integers(tmp_path, monkeypatch, capsys):
    plain = SWEEPS["stages"].point("3.0-cutmix").recipe
    sweep = sweep_of(plain=plain, integers=replace(plain, changes=(Quantize(5, 7),)))
    monkeypatch.setitem(SWEEPS, "toy", sweep)

    def said(*words: str) -> dict:
        status = main([*words, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert status == (2 if "error" in found else 0), found
        return found

    path = str(tmp_path / "a.mnet")
    with tiny_lab(tmp_path) as lab:
        # Narrower, the first block would have as many channels as the stem.
        monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], width_mult=0.25))
        words = ("export", "toy", path, "--profile", "smoke", "--point")
        assert "is a MicroNet" in said(*words, "plain")["error"]
        assert lab.trained == []  # it is known before
        exported = said(*words, "integers")
        assert "error" not in exported, exported
        other = str(tmp_path / "a.safetensors")
        said("export", "toy", other, "--profile", "smoke", "--point", "integers")
    assert load_packed(Path(path)).about["point"] == "integers"
    found = said("score", "--checkpoint", path, "--rules", "official")
    assert found["score"] == exported["official_score"]
    rated = said("evaluate", "--checkpoint", path, "--dataset", "embedded")
    again = said("evaluate", "--checkpoint", path, "--dataset", "embedded", "--runtime", "integer")
    for key in ("model", "dataset", "correct", "num_examples", "top1", "top5", "loss"):
        assert again[key] == rated[key]
    assert again["runtime"] == "integer"
    assert 8 < again["seen_accumulator_bits"] <= again["accumulator_bits"] < 32
    wrong = said("evaluate", "--checkpoint", other, "--runtime", "integer")
    assert "end in .mnet" in wrong["error"]
    wrong = said("evaluate", "--checkpoint", path, "--runtime", "onnx")
    assert wrong["error"] == "unknown runtime 'onnx'; choose from torch, integer, openvino"
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    for more in ([], ["--runtime", "integer"]):
        assert "a.mnet is damaged" in said("evaluate", "--checkpoint", path, *more)["error"]
