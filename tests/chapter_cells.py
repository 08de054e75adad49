"""The code cells of a chapter as a script: the same process, no kernel, a small budget."""

import ast
import contextlib
import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import pytest
import torch
from published_format import pruned_network, published_state
from small_networks import single_thread
from torch import Tensor

from micronet_lib.assembled_cnn.corruptions import SEVERITIES
from micronet_lib.assembled_cnn.perturbations import PERTURBATIONS
from micronet_lib.beyond import adaptive_rounding, changes
from micronet_lib.beyond.adaptive_rounding import RoundingConfig, round_adaptively
from micronet_lib.beyond.allocation import HIGHEST_PRICE
from micronet_lib.beyond.network import IntegerMicroNet
from micronet_lib.beyond.sensitivity import Sensitivity, measure_sensitivity
from micronet_lib.errors import InputError
from micronet_lib.lab.data import images
from micronet_lib.lab.data.downloads import KAIST_SHA256, POLICIES_FILE
from micronet_lib.lab.host.places import data_root
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running import measure, networks
from micronet_lib.lab.running.measures import corruptions, perturbations

BOOK = Path(__file__).resolve().parent.parent / "book"
CHAPTERS = tuple(sorted(path.stem for path in BOOK.glob("[0-9][0-9]_*.ipynb")))
BUDGET: dict[str, Any] = {
    "epoch_share": 1 / 600,
    "num_images": 64,
    "num_validation": 100,
    "batch_size": 32,
    "width_mult": 0.2,  # narrower, a stem is as narrow as its first block, not so in integers
}
FEW = 8
TWO_POINTS = ("beyond", "corruptions", "perturbations")
TWO_POINTS += ("zeros_and_bits", "rounding", "adaptive_rounding")
SUB_POLICY = [["Rotate", 0.5, 0.6], ["Color", 0.5, 0.4]]
POLICY_SETS = (
    "fa_wresnet40x2_cifar100",
    "fa_wresnet40x2_cifar100_r5",
    "fa_wresnet28x10_cifar100",
    "fa_shake26_2x96d_cifar100",
)


class CellError(Exception):
    """A cell stopped; the message names the cell, the cause is its exception."""


@dataclass
class Run:
    """What a run of a chapter left."""

    namespace: dict[str, Any]
    printed: str


def place(folder: Path, groups: Collection[str]) -> None:
    """Write files that stand for the downloads of some groups."""
    if "cifar100" in groups:
        (folder / "cifar-100-python").mkdir(parents=True)
        for name in ("train", "test", "meta"):
            (folder / "cifar-100-python" / name).touch()
    if "kaist" in groups:
        (folder / "kaist").mkdir(parents=True)
        for stem in KAIST_SHA256:
            network = f"micronet_{stem[:2]}_released"
            target = folder / "kaist" / f"micronet_{stem}.t7"
            target.write_bytes(_published(network))
    if "policies" in groups:
        path = folder / POLICIES_FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({name: [SUB_POLICY] for name in POLICY_SETS}))


@cache
def _published(network: str) -> bytes:
    file = io.BytesIO()
    torch.save(published_state(pruned_network(network)), file)
    return file.getvalue()


def _drawn_cifar100(split: str) -> images.ImageSet:
    """Drawn images in the place of CIFAR-100's, where its folder is there."""
    if not (data_root() / "cifar-100-python").is_dir():
        raise InputError("CIFAR-100 is not there")
    return images._read("embedded", split)


@contextmanager
def chapter_lab(folder: Path, groups: Collection[str] = ()) -> Iterator[list[str]]:
    """A tiny budget at every profile, its own folder of runs, and the files of some groups.

    Yields:
        The names of the cases that were trained.
    """
    place(folder / "data", groups)
    trained: list[str] = []
    train = networks.train_network
    read_embedded = images._read_embedded

    def train_network(recipe, profile, seed, name, progress=True):
        trained.append(name)
        train(recipe, profile, seed, name, progress=False)

    def few_images(split: str) -> images.ImageSet:
        found = read_embedded(split)
        # Two of each class: an image of chapter 10 looks for another of its own.
        return found.first(200) if split == "test" else found

    calibrate = IntegerMicroNet.calibrate

    def calibrate_with_few(network: IntegerMicroNet, seen: Tensor, clip: bool = True) -> None:
        calibrate(network, seen[:FEW], clip)

    def few_sensitivities(network: IntegerMicroNet, seen: Tensor) -> Sensitivity:
        return measure_sensitivity(network, seen[:FEW])

    def round_a_little(network: IntegerMicroNet, seen: Tensor, config: RoundingConfig) -> None:
        round_adaptively(network, seen[:FEW], replace(config, iterations=FEW))

    with pytest.MonkeyPatch.context() as patch, single_thread():
        for name, profile in list(PROFILES.items()):
            patch.setitem(PROFILES, name, replace(profile, **BUDGET))
        patch.setattr(images, "_read_embedded", cache(few_images))
        patch.setattr(images, "_read_cifar100", _drawn_cifar100)
        patch.setattr(measure, "train_network", train_network)
        # Chapters 10 and 11 have networks of full width, ten seconds each: two points of a grid.
        for name in TWO_POINTS:
            *others, last = SWEEPS[name].axes.items()
            axes = {axis: at[-1:] for axis, at in others} | {last[0]: (last[1][0], last[1][-1])}
            patch.setitem(SWEEPS, name, replace(SWEEPS[name], axes=axes))
        patch.setattr(corruptions, "SEVERITIES", SEVERITIES[::4])
        few = {name: PERTURBATIONS[name] for name in ("shot_noise", "translate")}
        patch.setattr(perturbations, "PERTURBATIONS", few)
        # To plan such a network takes minutes: here with few images, and no search for a price.
        patch.setattr(IntegerMicroNet, "calibrate", calibrate_with_few)
        patch.setattr(changes, "measure_sensitivity", few_sensitivities)
        patch.setattr(adaptive_rounding, "round_adaptively", round_a_little)
        patch.setattr(changes, "cheapest_price", lambda *args: HIGHEST_PRICE)
        patch.setenv("MICRONET_RUNS", str(folder / "runs"))
        patch.setenv("MICRONET_DATA", str(folder / "data"))
        yield trained


def code_cells(stem: str) -> list[tuple[list[str], str]]:
    """Tags and source of each code cell."""
    notebook = jupytext.read(BOOK / "src" / f"{stem}.md")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.metadata.get("tags", []), cell.source) for cell in cells]


def run_chapter(stem: str, until: str = "", **parameters: Any) -> Run:
    """Run a chapter's code cells, and show what their last lines return, as a notebook would.

    Args:
        stem: of the chapter.
        until: tag of the last cell to run; by default all.
        parameters: replace those of the first cell.

    Raises:
        CellError: a cell stopped.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    out = io.StringIO()
    for number, (tags, source) in enumerate(code_cells(stem), start=1):
        try:
            with contextlib.redirect_stdout(out):
                _run_cell(source, f"{stem}[{number}]", namespace)
        except Exception as error:
            raise CellError(f"{stem}, cell {number}: {type(error).__name__}: {error}") from error
        if "parameters" in tags:
            namespace |= parameters
        if until in tags:
            break
    return Run(namespace, out.getvalue())


def _run_cell(source: str, name: str, namespace: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if hasattr(value, "_repr_html_"):
            value._repr_html_()
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")
