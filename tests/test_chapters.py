"""A chapter ends well, or says in one line what is missing, before anything expensive.

The cells run as a script in this process at a tiny budget (`chapter_cells`). What is run is drawn
from all chapters, profiles, seeds, overrides and sets of files; the whole matrix is slow.
"""

import itertools
import random

import pytest
import torch
from chapter_cells import CHAPTERS, CellError, chapter_lab, run_chapter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from micronet_lib.errors import InputError
from micronet_lib.lab import running
from micronet_lib.lab.data.downloads import GROUPS
from micronet_lib.lab.host.given import SEEDS
from micronet_lib.lab.host.places import ROOT, check_library
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running import plan

# Half a minute at the smallest budget.
EXPENSIVE = ["03_label_smoothing", "04_augmentation", "04_augmentation_in_depth"]
CHAPTERS_OF_COUNTS = ["00_contest", "01_architecture", "01_architecture_in_depth"]
CHAPTERS_OF_COUNTS += ["02_srip_in_depth", "06_scoring_in_depth", "11_beyond_in_depth"]
CHAPTERS_OF_COUNTS += ["98_report", "99_status"]
FILES = [chosen for n in range(4) for chosen in itertools.combinations(GROUPS, n)]
# What the book, an exercise or a message offers to change.
OVERRIDES = (
    {},
    {"model": "micronet_v2"},
    {"srip.start": "warm"},
    {"prune.scope": "layer"},
    {"prune.scope": "kind"},
    {"width_mult": 0.5},
    {"train.epochs": 2},
    {"train.precision": "bf16"},
    '{"train.weight_decay": 0.0001}',  # as papermill's -p passes it
)

# With the last one, rounding gives one small matrix of chapter 02 a slope out of all proportion.
SETTINGS = [*enumerate(OVERRIDES), (SEEDS - 1, {}), (1_821_251_442, {})]


def refusal(stem: str, **parameters: object) -> str:
    """The line with which a chapter's setup cell stops, or nothing."""
    try:
        run_chapter(stem, until="setup", **parameters)
    except CellError as error:
        if not isinstance(error.__cause__, InputError):
            raise
        return str(error.__cause__)
    return ""


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("files", FILES, ids=lambda files: "+".join(files) or "nothing")
def test_the_setup_cell_names_the_groups_of_files_that_are_missing(tmp_path, profile, files):
    embedded = PROFILES[profile].dataset == "embedded"
    with chapter_lab(tmp_path, files):
        lines = {stem: refusal(stem, profile=profile) for stem in CHAPTERS}
    for stem, line in lines.items():
        asked = line.partition("data fetch ")[2].partition("`")[0].split()
        assert bool(asked) == bool(line), line
        assert not set(asked) & set(files), line
        assert "\n" not in line
        assert not (embedded or len(files) == len(GROUPS)) or not line, f"{stem}: {line}"
    if profile == "full" and not files:
        assert [stem for stem in CHAPTERS if not lines[stem]] == CHAPTERS_OF_COUNTS


# -------------------------------------------------------------------------------- whole chapters


def check(tmp_path, stem, profile, seed, overrides, files) -> None:
    """A chapter ends well, or stops in its setup cell, with nothing trained."""
    with chapter_lab(tmp_path, files) as trained:
        if refusal(stem, profile=profile, seed=seed, overrides=overrides):
            assert not trained
        else:
            run_chapter(stem, profile=profile, seed=seed, overrides=overrides)


def test_a_chapter_ends_well_at_settings_drawn_at_random(tmp_path):
    rng = random.SystemRandom()
    cheap = [stem for stem in CHAPTERS if stem not in EXPENSIVE]
    drawn = [rng.choice(cheap), rng.choice(["smoke", "quick"]), rng.randrange(SEEDS)]
    drawn += [rng.choice(OVERRIDES), GROUPS]
    print(drawn)  # pytest shows it when the test fails
    check(tmp_path, *drawn)


class AtEverySetting:
    """The whole matrix of one chapter."""

    stem: str

    @pytest.mark.parametrize(("seed", "overrides"), SETTINGS)
    def test_ten_seeds_and_every_override_on_offer(self, tmp_path, seed, overrides):
        check(tmp_path, self.stem, "smoke", seed, overrides, ())

    @pytest.mark.parametrize("profile", ["quick", "full"])
    @pytest.mark.parametrize("files", [("cifar100", "policies"), ("cifar100", "kaist"), GROUPS])
    def test_real_images_with_the_files_that_suffice(self, tmp_path, profile, files):
        check(tmp_path, self.stem, profile, 0, {}, files)


# One class a chapter: `--dist loadscope` gives each class to a process, so that all are busy.
for _stem in CHAPTERS:
    _class = type(f"Test{_stem.title()}", (AtEverySetting,), {"stem": _stem})
    globals()[_class.__name__] = pytest.mark.slow(_class)


@pytest.mark.slow
def test_the_page_to_look_at_on_real_images(tmp_path):
    check(tmp_path, "explore", "quick", 0, {}, ["cifar100"])


def test_the_page_to_look_at_names_what_it_needs(tmp_path):
    with chapter_lab(tmp_path):
        assert "data fetch cifar100" in refusal("explore", profile="full")


# ---------------------------------------------------------------------------------- odd settings


@pytest.mark.parametrize("seed", [True, None, "1", 1.0, 1.5, -1, SEEDS, float("nan"), "x"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        running.begin("smoke", seed)


@pytest.mark.parametrize("overrides", ["x", "[1]", 3, ["train.epochs"], {1: 2}, "{'a': 1}"])
def test_overrides_that_are_no_mapping_are_refused(overrides):
    with pytest.raises(InputError, match="overrides"):
        running.begin("smoke", 0, overrides)


def test_settings_as_papermill_passes_them(capsys):
    plain = running.begin("smoke", 1, {"width_mult": 0.5}, records=["expand_ratio"])
    assert running.begin("smoke", 1, '{"width_mult": 0.5}') == plain
    assert running.begin("smoke", 1, None) == (1, {})
    assert "width_mult=0.5" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [{"depth": 3}, {"train.epochs": "two"}])
def test_an_override_that_no_recipe_has_is_refused_at_the_start(overrides):
    with pytest.raises(InputError):
        running.begin("smoke", 0, overrides, records=["pipeline"])


def test_a_lost_network_stops_the_chapter_at_its_start(tmp_path):
    with chapter_lab(tmp_path):
        running.ensure(SWEEPS["label_smoothing"], "smoke", point="none")
        for network in tmp_path.glob("runs/smoke/networks/*/network.pt"):
            network.unlink()
        names = ["label_smoothing/none"]
        running.begin("smoke", records=names)  # the record is enough
        with pytest.raises(InputError, match="--retrain"):
            running.begin("smoke", records=names, networks=names)


def test_a_chapter_draws_the_same_with_the_same_seed():
    drawn = []
    for seed in (1, 2, 1):
        running.begin("smoke", seed)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_what_is_still_to_be_trained_does_not_change_what_a_chapter_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_NUM_PARAMS", {})
    torch.manual_seed(1)
    expected = torch.rand(3)
    with chapter_lab(tmp_path):
        running.begin("smoke", 1, records=["exit_training"])
        assert plan._NUM_PARAMS  # networks were made, to know their sizes
    assert torch.equal(torch.rand(3), expected)


def test_one_published_file_is_enough_to_begin(tmp_path):
    with chapter_lab(tmp_path, ["cifar100", "kaist"]):
        files = sorted(tmp_path.glob("data/kaist/*.t7"))
        for file in files[1:]:
            file.unlink()
        running.begin("full", records=["published"])
        files[0].unlink()
        with pytest.raises(InputError, match="data fetch kaist`"):
            running.begin("full", records=["published"])


# ------------------------------------------------------------------------------- library and errors


def test_another_checkouts_library_is_refused(tmp_path):
    copy = tmp_path / "a copy" / "book"
    copy.mkdir(parents=True)
    check_library(copy)  # no checkout around it
    check_library(ROOT / "book")
    package = copy.parent / "micronet_lib"
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.raises(InputError, match="make setup"):
        check_library(copy)


def test_a_notebook_shows_a_users_error_as_one_line():
    shell = InteractiveShell()
    with capture_output() as captured:
        shell.run_cell(
            "from micronet_lib.errors import InputError, NotFiniteError\n"
            "def deep(n):\n"
            "    if n: deep(n - 1)\n"
            "    raise NotFiniteError('the loss is NaN')\n"
            "deep(5)"
        )
    shown = captured.stdout + captured.stderr
    assert shown.strip().splitlines() == ["NotFiniteError: the loss is NaN"]
