"""Every verb of the command line, as a person and as a program uses it.

What it does with bad input is in `test_robustness`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torchvision
from PIL import Image
from published_data import IMAGES, require
from published_format import pruned_network, published_state, save
from small_networks import PLAIN_RULES

from micronet_lib import __main__ as command_line
from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.augmentation.policies import PROVENANCE, load_policies
from micronet_lib.lab import records
from micronet_lib.lab.data import downloads
from micronet_lib.lab.host.places import MEASURED, checkpoint_path
from micronet_lib.lab.host.progress import duration
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.records import record
from micronet_lib.lab.running import lineage
from micronet_lib.lab.running.engines import ENGINES
from micronet_lib.lab.search import policy_search
from micronet_lib.lab.search.policy_search import SET_NAME
from micronet_lib.scoring.bill import SCORE_METRICS, score_network
from micronet_lib.scoring.dead_channels import SAVINGS, apply_savings
from micronet_lib.scoring.rules import rules_of

ROOT = Path(__file__).resolve().parent.parent
EVALUATION_KEYS = {"correct", "num_examples", "top1", "top5", "loss", "ece", "images_per_s"}


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


def run(*argv: str | Path) -> Ran:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line.main([str(word) for word in argv])
    return Ran(status, out.getvalue(), err.getvalue())


def result(*argv: str | Path, status: int = 0, err: bool = False) -> dict[str, Any]:
    """The one JSON object that a command prints with `--json`."""
    ran = run(*argv, "--json")
    assert ran.status == status, ran.err
    assert bool(ran.err) == err
    assert ran.out.count("\n") == 1
    return json.loads(ran.out)


@pytest.fixture(scope="module")
def pruned() -> MicroNet:
    return pruned_network()


@pytest.fixture(scope="module")
def checkpoint(pruned, tmp_path_factory) -> Path:
    """A published-format file of MicroNet v1 with 60 % of its weights gone."""
    return save(published_state(pruned), tmp_path_factory.mktemp("kaist") / "network.t7")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# -------------------------------------------------------------------------------------- help

VERBS = (
    *("data", "data fetch", "data check", "data picture"),
    *("evaluate", "score", "measure", "agenda", "list", "compare", "curves", "recipe"),
    *("search-policies", "export", "promote"),
)


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command_line.main([*words, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_every_verb_has_help_and_is_named_there(capsys):
    for verb in ("", *VERBS):
        assert help_of(capsys, *verb.split()).startswith(f"usage: micronet {verb}".strip())
    for words, verbs in ((["data"], VERBS[1:4]), ([], (VERBS[0], *VERBS[4:]))):
        named = re.findall(r"^ {4}(\S+)", help_of(capsys, *words), re.MULTILINE)
        assert named == [verb.split()[-1] for verb in verbs]


def test_help_ends_with_what_may_be_chosen(capsys):
    choices = {"sweep": SWEEPS, "profile": PROFILES, "engine": ENGINES}
    for verb, kinds in {"measure": choices, "compare": ("sweep", "profile"), "score": ()}.items():
        shown = " ".join(help_of(capsys, verb).split())
        for kind, names in choices.items():
            assert (f"{kind}: {', '.join(names)}" in shown) == (kind in kinds), (verb, kind)


def test_list_says_what_there_is_and_what_it_cost(monkeypatch):
    found = result("list")["sweeps"]
    assert [row["sweep"] for row in found] == list(SWEEPS)
    rows = {row["sweep"]: row for row in found}
    assert rows["stages"]["printed"] == "Table 2, Table 3, Table 4"
    assert (rows["stages"]["points"], rows["stages"]["chapter"]) == (42, "04_augmentation")
    assert rows["published"]["quick.measured"] is None
    savings = [records.read(p) for p in (MEASURED / "full" / "free_savings").glob("*.json")]
    seconds = sum(each.env["wall_s"] for each in savings)
    assert rows["free_savings"]["full.seconds"] == pytest.approx(seconds)
    assert rows["free_savings"]["full.runs"] == len(savings)
    lines = {line.split()[0]: line for line in run("list").out.splitlines()}
    assert (
        f"{len(savings)}, {duration(seconds / len(savings))} x {len(savings)}"
        in (lines["free_savings"])
    )
    assert result("list", "pipeline")["points"] == ["dense", "0.15", "0.30", "0.45", "0.60"]


def test_micronet_is_the_installed_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = EntryPoint("micronet", project["scripts"]["micronet"], "console_scripts")
    assert entry.load() is command_line.main


# ------------------------------------------------------------------------------------- score


def test_score_of_a_fresh_network_and_of_a_checkpoint(checkpoint, pruned):
    for model in ("micronet_v1", "table1_3.0"):
        expected = score_network(build(model))
        macs = {"macs": expected.macs, "dense_macs": expected.dense_macs}
        found = result("score", "--model", model)
        assert found == {"model": model, "rules": "published", **expected.metrics(), **macs}
    for rules in PLAIN_RULES:
        found = result("score", "--checkpoint", checkpoint, "--rules", rules)
        assert (found["model"], found["rules"]) == ("micronet_v1_released", rules)
        expected = score_network(pruned, rules).metrics()
        assert {name: found[name] for name in SCORE_METRICS} == expected


def test_score_without_what_is_free(checkpoint, pruned):
    scores = []
    for steps in range(len(SAVINGS) + 1):
        names = list(SAVINGS)[:steps]
        found = result("score", "--checkpoint", checkpoint, "--save", *names)
        assert found["score"] == score_network(apply_savings(pruned, names)).score
        scores.append(found["score"])
    assert scores[3] < scores[2] <= scores[1] < scores[0]


def test_score_at_fewer_bits(checkpoint, pruned):
    words = ["score", "--checkpoint", checkpoint, "--rules", "official"]
    words += ["--weight-bits", "4", "--activation-bits", "8"]
    found = [result(*words, "--accumulator", name) for name in ("fp32", "integer", "adder_tree")]
    for entry, name in zip(found, ("fp32", "integer", "adder_tree"), strict=True):
        assert entry["score"] == score_network(pruned, rules_of("official", 4, 8, name)).score
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]


def test_score_for_a_reader_and_the_bill():
    words = ["score", "--model", "c_efficientnet_1.0"]
    plain = run(*words)
    assert (plain.status, plain.err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in plain.out.splitlines())
    found = result(*words)
    assert list(shown) == list(found)
    assert shown["num_params"] == f"{found['num_params']:,}".replace(",", " ")
    bill = run(*words, "--layers").out
    assert bill.endswith(plain.out)
    assert "stem.conv" in bill
    layers = result(*words, "--layers")["layers"]
    columns = {"layer", "kind", "quantity", "count", "bits", "param_storage", "math_ops", "score"}
    assert all(set(line) == columns for line in layers)
    for name in ("param_storage", "math_ops", "score"):
        assert sum(line[name] for line in layers) == pytest.approx(found[name])
    adds = sum(line["count"] for line in layers if line["quantity"] == "add")
    assert adds == pytest.approx(found["num_adds"])


def test_score_of_any_network():
    words = ["score", "--network", "torchvision.models:mobilenet_v2", "--input", "3x40x32"]
    found = result(*words, "--arg", "num_classes=7")
    network = torchvision.models.mobilenet_v2(num_classes=7)
    expected = score_network(network, "official", (3, 40, 32))
    assert (found["model"], found["rules"]) == ("torchvision.models:mobilenet_v2", "official")
    assert found["dense_macs"] == expected.dense_macs
    assert found["num_adds"] == pytest.approx(expected.num_adds, rel=1e-5)
    assert found["macs"] == pytest.approx(found["dense_macs"], rel=1e-5)
    quirk = result(*words, "--rules", "official_quirk")
    assert quirk["rules"] == "official_quirk"
    shown = run(*words).out.splitlines()
    assert [line.split()[0] for line in shown][-2:] == ["macs", "dense_macs"]


# ---------------------------------------------------------------------------------- evaluate


def test_evaluate_in_a_process_of_its_own(tmp_path):
    """One JSON object on stdout while the progress, switched on here, goes to stderr."""
    model = pruned_network("c_efficientnet_1.0_released")
    path = save(published_state(model), tmp_path / "network.t7", as_zip=False)
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    words = ["evaluate", "--checkpoint", str(path), "--dataset", "embedded", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "micronet_lib", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    found = json.loads(ran.stdout)
    assert set(found) == {"model", "dataset", *EVALUATION_KEYS}
    assert (found["model"], found["dataset"]) == ("c_efficientnet_1.0_released", "embedded")
    assert found["num_examples"] == 1000
    assert found["top1"] == found["correct"] / 1000 <= found["top5"] <= 1
    assert found["loss"] > 0
    assert found["images_per_s"] > 0
    drawn = [line.strip() for line in ran.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert drawn
    assert all(line.startswith("evaluate:") for line in drawn)


# ----------------------------------------------------------------------------------- measure


def test_measure_makes_each_record_once(runs):
    found = result("measure", "expand_ratio", "--profile", "smoke")
    points = [point.name for point in SWEEPS["expand_ratio"].points()]
    assert (found["sweep"], found["profile"]) == ("expand_ratio", "smoke")
    assert [row["point"] for row in found["points"]] == points
    assert all(row["n"] == 1 for row in found["points"])
    for row, point in zip(found["points"], SWEEPS["expand_ratio"].points(), strict=True):
        expected = score_network(build(point.recipe.model), "revised").score
        assert row["revised.score"] == pytest.approx(expected, abs=1e-15)

    files = sorted(path for path in runs.rglob("*") if path.is_file() and path.name != "lock")
    assert [path.name for path in files] == [f"{name}-s0.json" for name in points]
    written = {path: path.stat().st_mtime_ns for path in files}
    assert result("measure", "expand_ratio", "--profile", "smoke") == found
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")} == written


def test_measure_looks_once_for_what_is_to_do(runs, monkeypatch):
    asked, state_of = [], lineage.state_of
    monkeypatch.setattr(lineage, "state_of", lambda *a: asked.append(a[0].point) or state_of(*a))
    result("measure", "expand_ratio", "--profile", "smoke")
    assert asked == [point.name for point in SWEEPS["expand_ratio"].points()]


def test_measure_one_point_with_a_seed_and_an_override(runs):
    words = ["measure", "printed_table", "--profile", "smoke", "--point", "3.0", "--seed", "7"]
    (row,) = result(*words)["points"]
    assert (row["point"], row["n"]) == ("3.0", 1)
    (path,) = [path for path in runs.rglob("*") if path.is_file() and path.name != "lock"]
    assert path.relative_to(runs) == Path("smoke/printed_table/3.0-s7.json")

    (other,) = result(*words, "--override", "model=micronet_v2")["points"]
    assert other["revised.score"] < row["revised.score"]
    (second,) = set(path.parent.glob("*.json")) - {path}
    assert second.name.startswith("3.0+")
    assert records.read(second).recipe["model"] == "micronet_v2"
    assert records.read(path).recipe["model"] != "micronet_v2"

    ran = run(*words)  # for a reader
    assert (ran.status, ran.err) == (0, "")
    header, cells, footer = ran.out.splitlines()
    assert header.split() == ["point", "n", *SWEEPS["printed_table"].metrics]
    assert cells.split()[:2] == ["3.0", "1"]
    assert footer.startswith("this run · smoke · ")


def test_measure_a_published_network(runs, data, checkpoint):
    (data / "kaist").mkdir(parents=True)
    (data / "kaist" / "micronet_v1_pr_60.t7").symlink_to(checkpoint)
    found = result("measure", "bit_widths", "--profile", "full", "--point", "w4a8-integer")
    (row,) = found["points"]
    expected = result(
        *("score", "--checkpoint", checkpoint, "--rules", "official", "--weight-bits", "4"),
        *("--activation-bits", "8", "--accumulator", "integer"),
    )
    assert row["official.score"] == pytest.approx(expected["score"], abs=1e-15)


TINY = {"width_mult": 0.1, "train.epochs": 1, "train.num_images": 32, "train.num_validation": 50}
TINY_WORDS = [word for item in TINY.items() for word in ("--override", "{}={}".format(*item))]


def plan_of(*words: str) -> dict[str, str]:
    """The state of every row of a plan of the tiny pipeline."""
    found = result("measure", "pipeline", "--profile", "smoke", *TINY_WORDS, "--plan", *words)
    return {row["point"]: row["state"] for row in found["plan"]}


def test_a_lost_network_is_trained_again_when_asked(runs, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    command = ["measure", "pipeline", "--profile", "smoke", *TINY_WORDS, "--json", "--point"]
    assert plan_of("--point", "0.15") == {"dense": "to train", "0.15": "to train"}
    assert run(*command, "dense").status == 0
    (network,), (dense,) = runs.rglob("network.pt"), runs.rglob("*.json")
    written = dense.stat().st_mtime_ns
    assert plan_of("--point", "0.15") == {"0.15": "to train"}

    network.unlink()
    before = sorted(runs.rglob("*"))
    assert plan_of("--point", "dense") == {"dense": "measured"}
    lost = plan_of("--point", "0.15")
    assert list(lost) == ["dense", "0.15"]
    assert all("--retrain" in state for state in lost.values())
    alone = run(*command, "0.15")  # nothing that was asked for can be done
    assert (alone.status, alone.err.count("\n"), "--retrain" in alone.err) == (2, 1, True)
    among = run(*command, "*")
    assert (among.status, among.err.count("\n"), "--retrain" in among.err) == (1, 1, True)
    assert sorted(runs.rglob("*")) == before

    assert plan_of("--point", "dense", "--retrain") == {"dense": "to train"}
    assert plan_of("--point", "0.15", "--retrain") == {"dense": "to train", "0.15": "to train"}
    assert run(*command, "0.15", "--retrain").status == 0
    assert network.is_file()
    assert dense.stat().st_mtime_ns == written
    assert plan_of("--point", "0.15") == {"0.15": "measured"}


# ------------------------------------------------------------------------------------ recipe


def test_compare_puts_paper_records_and_this_machine_side_by_side(runs):
    words = ["compare", "expand_ratio", "--profile", "quick"]
    assert result(*words)["verdicts"] == {}
    assert "yours: no record to compare\n" in run(*words).out
    run("measure", "expand_ratio", "--profile", "quick", "--point", "3.0")
    found = result(*words)
    assert found["verdicts"] == {"same": 3}
    (np_row,) = [
        row
        for row in found["rows"]
        if (row["point"], row["metric"]) == ("3.0", "param_storage_millions")
    ]
    assert (np_row["paper"], np_row["locator"]) == ("0.23", "Table 2, row NP")
    assert np_row["mine"] == np_row["committed"] == pytest.approx(0.23, abs=0.005)
    plain = run(*words)
    assert (plain.status, plain.err) == (0, "")
    assert plain.out.endswith("yours: 3 same\n")
    assert " 0.229 (n=1)" in plain.out

    (path,) = runs.rglob("*.json")
    made = records.read(path)
    wrong = made.metrics | {"revised.score": made.metrics["revised.score"] + 1e-8}
    records.write(replace(made, metrics=wrong), runs)
    found = result(*words, status=1)
    assert found["verdicts"] == {"same": 2, "outside": 1}
    assert "must be equal" in run(*words).out


def test_compare_fits_a_narrow_terminal(runs, monkeypatch):
    widths = {}
    for columns in ("400", "150"):
        monkeypatch.setenv("COLUMNS", columns)
        shown = run("compare", "published").out.partition("published: committed")[0]
        widths[columns] = max(map(len, shown.splitlines()))
        assert "final scoring notebook, output flops" in shown
        assert ("\nprinted in:\n" in shown) == (columns == "150")
    assert widths["150"] <= 150 < widths["400"]


def test_compare_without_a_sweep_shows_every_number_in_print(runs):
    found = result("compare")
    listed = {row["sweep"] for row in found["rows"]}
    assert listed == {sweep.name for sweep in SWEEPS.values() if sweep.printed}
    assert all(row["paper"] for row in found["rows"])


def test_recipe_is_what_a_profile_runs():
    for name, sweep in SWEEPS.items():
        point, profile = sweep.points()[-1], sweep.profiles[0]
        found = result("recipe", name, point.name, "--profile", profile)
        expected = resolved(point.recipe, PROFILES[profile])
        assert found["recipe_id"] == recipe_id(expected)
        assert found["recipe"]["model"] == expected.model
        assert found["recipe"]["train"]["epochs"] == expected.train.epochs


def test_recipe_for_a_reader_takes_overrides():
    words = ["recipe", "pipeline", "0.30", "--profile", "smoke", "--override"]
    ran = run(*words, "train.lr=0.25")
    assert (ran.status, ran.err) == (0, "")
    shown = {
        key: value.strip() for key, _, value in (s.partition(" ") for s in ran.out.splitlines())
    }
    found = result(*words, "train.lr=0.25")
    assert shown["recipe_id"] == found["recipe_id"]
    assert shown["recipe_id"] != result(*words, "train.lr=0.5")["recipe_id"]
    assert shown["train.lr"] == "0.25"
    assert shown["train.hold_out"] == "True"
    assert shown["prune.sparsities"] == "(0.15, 0.3)"
    assert set(found["recipe"]) == {key.partition(".")[0] for key in shown} - {"recipe_id"}


# --------------------------------------------------------------------------- search-policies


def test_search_policies_writes_a_policy_file(runs, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    path, words = tmp_path / "mine.json", ["search-policies", "--profile", "smoke", "--seed", "5"]
    found = result(*words, "--output", path)
    assert (found["file"], found["profile"], found["seed"]) == (str(path), "smoke", 5)
    content = json.loads(path.read_text())
    about = content[PROVENANCE]
    assert found["sub_policies"] == len(load_policies(path).ops) == len(content[SET_NAME]) <= 12
    setting = [about["setting"][name] for name in ("profile", "dataset", "seed")]
    assert setting == ["smoke", "embedded", 5]
    assert about["recipe"]["augment"]["policy"] == "none"
    assert {"none", "searched", "shuffled", "random"} <= set(found["control"])
    assert all(set(row) == {"loss", "top1"} for row in found["control"].values())
    folder = runs / "smoke" / "search_policies" / "s5"
    assert all((folder / f"fold{fold}" / "network.pt").is_file() for fold in (0, 1))

    # Again, as a person reads it: the search is there already and is not made anew.
    monkeypatch.setattr(policy_search, "train", None)
    ran = run(*words)
    assert (ran.status, ran.err) == (0, "")
    header, *rows, last = ran.out.splitlines()
    assert header.split() == ["policies", "loss", "top-1"]
    for row, (kind, values) in zip(rows, found["control"].items(), strict=True):
        assert row.split() == [kind, f"{values['loss']:.4f}", f"{values['top1']:.2%}"]
    assert last == f"{found['sub_policies']} sub-policies in {folder / 'searched.json'}"
    again = json.loads((folder / "searched.json").read_text())
    assert again[SET_NAME] == content[SET_NAME]
    assert again[PROVENANCE]["control"] == about["control"]


# ----------------------------------------------------------------------------------- promote


def test_promote_copies_records(runs, tmp_path, monkeypatch):
    measured = tmp_path / "measured"
    monkeypatch.setattr(record, "promote", partial(record.promote, root=measured))
    checks, check = [], record.check_promotable
    monkeypatch.setattr(
        record, "check_promotable", lambda path, **how: checks.append(path) or check(path, **how)
    )
    monkeypatch.setattr(record, "in_history", "abc1234".__eq__)
    for point in ("1.0", "4.0"):
        run("measure", "expand_ratio", "--profile", "quick", "--point", point)
    paths = sorted(runs.rglob("*.json"))
    for path in paths:  # whatever the state of the code under test
        measured_here = records.read(path)
        env = measured_here.env | {"commit": "abc1234"}
        records.write(replace(measured_here, env=env), runs)
    refused = result("promote", *paths, tmp_path / "none.json", status=2, err=True)["error"]
    assert "none.json" in refused
    assert not measured.exists()  # all or none
    checks.clear()
    found = result("promote", *paths)
    assert checks == paths
    places = [str(measured / path.relative_to(runs)) for path in paths]
    assert found == {"records": places, "replaced": []}
    for path in paths:
        assert (measured / path.relative_to(runs)).read_bytes() == path.read_bytes()

    made = records.read(paths[0])
    old = made.metrics["official.score"]
    records.write(replace(made, metrics=made.metrics | {"official.score": 0.5}), runs)
    refused = result("promote", paths[0], status=2, err=True)["error"]
    assert f"official.score {old} -> 0.5" in refused
    assert "--replace" in refused
    shown = run("promote", paths[0], "--replace").out
    assert shown == f"{places[0]}\n  official.score  {old:.10g} -> 0.5\n"
    records.write(made, runs)
    assert result("promote", paths[0], "--replace")["replaced"] == [
        {"record": places[0], "metric": "official.score", "old": 0.5, "new": old}
    ]


# -------------------------------------------------------------------------------------- data


def test_check_of_an_empty_folder_and_of_a_damaged_file(data):
    found = result("data", "check", status=1)
    assert {row["status"] for row in found["files"]} == {"missing"}
    assert not data.exists()
    (data / "kaist").mkdir(parents=True)
    (data / "kaist" / "micronet_v1_pr_60.t7").write_bytes(b"cut")
    (data / "cifar-100-python" / "test").mkdir(parents=True)
    found = result("data", "check", status=1)
    status = {row["path"]: row["status"] for row in found["files"]}
    assert status.pop("kaist/micronet_v1_pr_60.t7") == "wrong digest"
    assert status.pop("cifar-100-python/test") == "unreadable"
    assert set(status.values()) == {"missing"}
    policies = result("data", "check", "policies", status=1)["files"]
    assert {row["path"].partition("/")[0] for row in policies} == {"policies"}
    plain = run("data", "check")
    assert plain.status == 1
    assert plain.out.count("\n") == len(found["files"])
    assert "wrong digest  kaist/micronet_v1_pr_60.t7\n" in plain.out


def test_fetch_leaves_a_file_that_is_right_alone(data, monkeypatch):
    path = data / "kaist" / "micronet_v1_pr_60.t7"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a checkpoint")
    (asset,) = [asset for asset in downloads.ASSETS if asset.path == "kaist/micronet_v1_pr_60.t7"]
    digest = f"sha256:{hashlib.sha256(b'a checkpoint').hexdigest()}"
    asset = replace(asset, files={asset.path: digest})
    monkeypatch.setattr(downloads, "fetch", partial(downloads.fetch, assets=[asset]))
    found = result("data", "fetch", "kaist")
    assert found == {"files": [{"path": "kaist/micronet_v1_pr_60.t7", "status": "present"}]}


def test_picture_shows_ten_images_of_each_superclass(tmp_path):
    path = tmp_path / "sheet.png"
    assert result("data", "picture", path) == {"file": str(path)}
    with Image.open(path) as picture:
        width, height = picture.size
    assert width >= 10 * 32
    assert height / width == pytest.approx(2, rel=0.1)


# -------------------------------------------------------------------------- stops and own faults


def test_an_interrupt_has_no_traceback_and_a_fault_of_ours_has(monkeypatch):
    def fail(paths: list[Path], replacing: bool) -> list[record.Promoted]:
        raise error

    monkeypatch.setattr(record, "promote", fail)
    error: BaseException = KeyboardInterrupt()
    assert run("promote", "a.json") == Ran(130, "", "micronet: stopped\n")
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run("promote", "a.json")


def process(*words: str | Path, path: Path | None = None, **more: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, whose imports look into a folder first."""
    places = os.pathsep.join(map(str, [path, ROOT] if path else [ROOT]))
    return subprocess.Popen(
        [sys.executable, "-m", "micronet_lib", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": places},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


def test_an_import_that_catches_everything_is_stopped_too(tmp_path):
    (tmp_path / "PIL.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [0]\nexcept BaseException:\n    pass\n"
        "Image = None\n"
    )
    with process("data", "picture", "a.png", path=tmp_path, stdout=subprocess.PIPE) as child:
        out, err = child.communicate()
    assert (child.returncode, out, err) == (130, "", "micronet: stopped\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("more", [["--json"], []], ids=["json", "text"])
def test_an_output_that_knows_few_letters_gets_the_whole_result(encoding, more, tmp_path):
    own = os.environ | {
        "PYTHONIOENCODING": encoding,
        "MICRONET_RUNS": str(tmp_path / "\u00fc\u2603"),
    }
    words = ["measure", "expand_ratio", "--profile", "smoke", "--point", "1.0", *more]
    ran = subprocess.run(
        [sys.executable, "-m", "micronet_lib", *words],
        capture_output=True,
        check=False,
        env=own | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    text = ran.stdout.decode(encoding)
    assert json.loads(text)["points"] if more else "this run" in text


def test_a_reader_who_leaves_early_is_no_fault(tmp_path):
    gone, pipe = os.pipe()
    os.close(gone)
    with process("data", "picture", "a.png", "--json", stdout=pipe, cwd=tmp_path) as child:
        os.close(pipe)
        _, err = child.communicate()
    assert (child.returncode, err) == (141, "")


# ------------------------------------------------------------------------- the published networks


# By file: correct, top-5 and loss as the authors' notebook prints them.
PUBLISHED = {
    "v1_pr_60": (8007, 0.9582, 0.747965),
    "v2_pr_60": (8004, 0.9551, 0.742793),
    "v2_pr_30": (8108, 0.9605, 0.707615),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_network_is_as_accurate_as_its_authors_say(name):
    path = checkpoint_path(f"micronet_{name}")
    correct, top5, loss = PUBLISHED[name]
    require(IMAGES, path)
    ran = run("evaluate", "--checkpoint", path, "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert set(found) == {"model", "dataset", *EVALUATION_KEYS}
    assert (found["dataset"], found["num_examples"]) == ("cifar100", 10_000)
    assert found["correct"] == correct
    assert found["top1"] == correct / 10_000
    assert found["top5"] == pytest.approx(top5, abs=1e-9)
    assert found["loss"] == pytest.approx(loss, abs=1e-5)
    checked = json.loads(run("data", "check", "--json").out)  # others may be missing
    status = {row["path"]: row["status"] for row in checked["files"]}
    assert status["cifar-100-python/test"] == "ok"
