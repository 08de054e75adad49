"""Profiles and sweeps: well-formed, and every recipe of theirs can be run by its name."""

import dataclasses
import json
import re
from collections.abc import Iterator

import pytest

from micronet_lib.architecture import NETWORKS
from micronet_lib.errors import InputError
from micronet_lib.lab.data.downloads import ASSETS
from micronet_lib.lab.data.images import DATA_SETS
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.tables import paper
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.scoring.dead_channels import SAVINGS
from micronet_lib.scoring.rules import rules_of

PUBLISHED = {asset.path for asset in ASSETS if asset.group == "kaist"}


def test_every_profile_names_a_data_set():
    assert {profile.dataset for profile in PROFILES.values()} <= set(DATA_SETS)
    assert all(profile.purpose for profile in PROFILES.values())


def test_every_sweep_is_well_formed():
    offenders = [
        f"{sweep.name}: {what}"
        for sweep in SWEEPS.values()
        for what in (*_sweep_faults(sweep), *_point_faults(sweep))
    ]
    assert offenders == []


def _sweep_faults(sweep: Sweep) -> Iterator[str]:
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", sweep.chapter):
        yield f"chapter {sweep.chapter}"
    if not sweep.title or not sweep.profiles:
        yield "no title or no profile"
    if not sweep.metrics or len(set(sweep.metrics)) < len(sweep.metrics):
        yield f"metrics {sweep.metrics}"
    if not set(sweep.measures) <= set(MEASURES):
        yield f"measures {sweep.measures}"
    if list(sweep.profiles) != [name for name in PROFILES if name in sweep.profiles]:
        yield f"profiles {sweep.profiles}"


def _point_faults(sweep: Sweep) -> Iterator[str]:
    names = [point.name for point in sweep.points()]
    if not names or len(set(names)) < len(names):
        yield "no points, or two of one name"
    for point in sweep.points():
        if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", point.name):
            yield f"{point.name} is no file name"
        if sweep.point(point.name) != point:
            yield f"{point.name} is not found by its name"
    # Round 0 of pruning is the dense network, whatever comes after it.
    ids = [recipe_id(point.recipe) for point in sweep.points() if not point.name.endswith("-0")]
    if len(set(ids)) < len(ids):
        yield "two points measure the same"


def test_every_recipe_names_what_there_is():
    for sweep in SWEEPS.values():
        for recipe in (point.recipe for point in sweep.points()):
            assert recipe.model in NETWORKS
            assert not recipe.checkpoint or f"kaist/{recipe.checkpoint}.t7" in PUBLISHED
            assert recipe.savings == tuple(SAVINGS)[: len(recipe.savings)]
            price = recipe.price
            rules_of("official", price.weight_bits, price.activation_bits, price.accumulator)


def test_every_recipe_is_plain_json_that_overrides_restore():
    for sweep in SWEEPS.values():
        for recipe in (point.recipe for point in sweep.points()):
            values = json.loads(json.dumps(dataclasses.asdict(recipe), allow_nan=False))
            # A change is made by its class, which plain values do not name.
            named = {"changes", "more_teachers", "start"}
            parts = {k for k in values if dataclasses.is_dataclass(getattr(recipe, k))}
            flat = {k: v for k, v in values.items() if k not in parts | named}
            assert with_overrides(recipe, flat) == recipe
            for name in parts - named:
                part = getattr(recipe, name)
                assert with_overrides(part, values[name]) == part


def test_point_is_found_by_name():
    recipe = SWEEPS["free_savings"].point("v2_pr_60-dead_channels").recipe
    assert recipe == Recipe(checkpoint="micronet_v2_pr_60", savings=("dead_gates", "dead_channels"))


@pytest.mark.parametrize(
    ("find", "known"),
    [
        (SWEEPS.__getitem__, SWEEPS),
        (PROFILES.__getitem__, PROFILES),
        (SWEEPS["bit_widths"].point, ["w8a8-fp32", "w4a4-integer"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(find, known):
    with pytest.raises(InputError) as caught:
        find("x")
    assert all(name in str(caught.value) for name in ["'x'", *known])


@pytest.mark.parametrize("source", ["kim2020", "micronet_code"])
def test_the_papers_recipe_is_what_the_sources_print(source):
    """Training settings of section 2.2 and of the README, as transcribed."""
    rows = (
        paper("pruning")
        .query("point == 'training' and source == @source")
        .set_index("metric")["value"]
    )
    train = PAPER.train
    ours = {name: getattr(train, name) for name in rows.index if hasattr(train, name)}
    assert len(ours) >= 6
    for name, value in ours.items():
        assert value == pytest.approx(rows[name]), name
    assert 1 - train.bn_momentum == pytest.approx(rows["bn_average_decay"])
    if source == "micronet_code":
        assert PAPER.augment.mix_alpha == rows["cutmix_alpha"]
        assert RELEASED.train.lr_levels == rows["period_epochs"]
