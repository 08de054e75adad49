"""The bill as an area, to walk into and on paper."""

import json
import re

import pytest
from figures import texts
from matplotlib.patches import Rectangle

from micronet_lib import plots
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.plots.style import KIND_STYLES


def data_of(html: str) -> dict:
    found = re.search(r"const data = (\{.*?\});\n", html)
    assert found
    return json.loads(found.group(1))


def test_the_area_holds_the_whole_bill_part_by_part():
    items = records.bill(SWEEPS["published"], "v1_pr_60")
    html = plots.bill_area({"v1_pr_60": (items, "somewhere")}, "area").data
    assert html == plots.bill_area({"v1_pr_60": (items, "somewhere")}, "area").data
    assert not re.search(r"__[A-Z]+__|https?://|src=|@import|url\(|fetch\(", html)
    (network,) = data_of(html)["networks"]
    assert (network["label"], network["source"]) == ("v1_pr_60", "somewhere")
    names = [part for part, _ in network["parts"]]
    assert names == ["stem", *(f"block {k}" for k in range(16)), "head"]
    costs = [cost for _, layers in network["parts"] for _, *layer in layers for cost in layer]
    published = records.measured(SWEEPS["published"]).set_index("point")
    score = published.loc["v1_pr_60", "published.score"]
    assert sum(costs) / 1e9 == pytest.approx(score, abs=1e-6)
    first = {name: layer for name, *layer in network["parts"][0][1]}
    assert list(first) == ["conv", "act"]
    assert first["conv"][0] == round(1e9 * 372 / 36.5e6)


def test_the_areas_of_the_mosaic_are_the_shares_of_the_score():
    items = records.bill(SWEEPS["published"], "v1_pr_60")
    fig = plots.score_mosaic(items, "somewhere")
    boxes = [patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle)]
    areas = [box.get_width() * box.get_height() for box in boxes]
    assert sum(areas) == pytest.approx(1)
    storage = items["param_storage"].sum() / 36.5e6
    score = storage + items["math_ops"].sum() / 10.49e9
    assert sum(areas[: len(areas) // 2]) == pytest.approx(storage / score)
    assert f"score {score:.6f}" in texts(fig)
    kinds = {label for label, _ in KIND_STYLES.values()} - {"pointwise", "other"}
    assert all(f"{name} " in texts(fig).replace("\n", " ") for name in (*kinds, "HardSwish"))
    assert "somewhere" in texts(fig)


def test_no_bill_is_refused():
    with pytest.raises(InputError, match="at least one"):
        plots.bill_area({}, "area")
