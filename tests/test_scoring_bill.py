"""The counter against the published figures: the winners' notebooks, the organisers' example."""

import os
from pathlib import Path

import pytest
import torchvision

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import EXPAND_RATIOS
from micronet_lib.lab import records
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network, score_operations
from micronet_lib.scoring.operations import Operation, record_operations
from micronet_lib.scoring.rules import rules_of

KAIST = Path(os.environ.get("MICRONET_DATA", "data")) / "kaist"


def published(name: str) -> tuple[Operation, ...]:
    path = KAIST / f"micronet_{name}.t7"
    if not path.is_file():
        pytest.skip(f"no {path.name}: `micronet data fetch kaist` gets it")
    return record_operations(load_published(path))


@pytest.mark.parametrize(
    ("name", "adds", "mults", "params", "mask", "score"),
    [
        ("v1_pr_60", 16_572_569, 18_959_092, 188_064, 14_076.75, 0.0054454026),
        ("v2_pr_30", 28_810_260, 31_029_682, 337_623, 14_724.5, 0.0092538458),
        ("v2_pr_60", 16_949_918, 19_169_332, 196_268, 14_724.5, 0.0056215259),
    ],
)
def test_the_winners_final_counter(
    name: str, adds: int, mults: int, params: int, mask: float, score: float
) -> None:
    found = score_operations(published(name), rules_of("published"))
    assert abs(found.num_adds - adds) <= 10
    assert abs(found.num_mults - mults) <= 10
    assert found.num_params == params
    assert found.mask_params == mask
    assert found.param_storage == params / 2 + mask
    assert found.score == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "rules", "score"),
    [
        ("v1_pr_60", "first", 0.00490139),
        ("v2_pr_60", "first", 0.00506435),
        ("v1_pr_60", "revised", 0.0050597382),
    ],
)
def test_the_winners_earlier_counters(name: str, rules: str, score: float) -> None:
    assert score_operations(published(name), rules_of(rules)).score == pytest.approx(
        score, abs=5e-9
    )


@pytest.mark.parametrize(
    ("name", "mults", "adds", "params", "first", "revised", "final"),
    [
        ("micronet_v1_released", 40_675_776, 38_289_246, 458_238, 0.011666, 0.011866, 0.012252),
        ("micronet_v2_released", 42_616_976, 40_397_554, 478_878, 0.012246, 0.012442, 0.012846),
    ],
)
def test_dense_networks(
    name: str, mults: int, adds: int, params: int, first: float, revised: float, final: float
) -> None:
    operations = record_operations(build(name))
    found = score_operations(operations, rules_of("published"))
    assert (found.num_mults, found.num_adds, found.num_params) == (mults, adds, params)
    scores = [score_operations(operations, rules_of(r)).score for r in ("first", "revised")]
    assert [*scores, found.score] == pytest.approx([first, revised, final], abs=5e-7)


@pytest.mark.parametrize("ratio", EXPAND_RATIOS)
def test_the_papers_storage_row_by_rounding(ratio: float) -> None:
    rows = records.paper("architecture").query("metric == 'param_storage_millions'")
    printed = rows.set_index("point")["value"][f"{ratio:.1f}"]
    found = score_network(build(f"c_efficientnet_{ratio:.1f}_released"), "revised")
    assert round(found.param_storage / 1e6, 2) == printed


@pytest.mark.parametrize(("rules", "adds"), [("official_quirk", 395.601), ("official", 394.551)])
def test_the_organisers_efficientnet(rules: str, adds: float) -> None:
    found = score_network(torchvision.models.efficientnet_b0(), rules, (3, 224, 224))
    assert found.param_storage * 4 / 1e6 == pytest.approx(10.535, abs=5e-4)
    assert found.num_mults / 2 / 1e6 == pytest.approx(203.312, abs=5e-4)
    assert found.num_adds / 1e6 == pytest.approx(adds, abs=5e-4)
    assert found.math_ops / 1e6 == pytest.approx(203.312 + adds, abs=1e-3)


@pytest.mark.parametrize(
    ("weights", "activations", "accumulator", "storage", "operations"),
    [
        (0, 0, "fp32", 0.00296, 0.00250),
        (8, 8, "fp32", 0.00184, 0.00217),
        (4, 8, "fp32", 0.00122, 0.00217),
        (4, 4, "fp32", 0.00122, 0.00199),
        (8, 8, "integer", 0.00184, 0.00169),
        (4, 8, "integer", 0.00122, 0.00152),
        (4, 4, "integer", 0.00122, 0.00118),
        (4, 4, "adder_tree", 0.00122, 0.00099),
    ],
)
def test_what_fewer_bits_would_cost(
    weights: int, activations: int, accumulator: str, storage: float, operations: float
) -> None:
    rules = rules_of("official", weights, activations, accumulator)
    found = score_operations(published("v1_pr_60"), rules)
    assert found.param_storage / PARAM_BASE == pytest.approx(storage, abs=6e-6)
    assert found.math_ops / OPS_BASE == pytest.approx(operations, abs=6e-6)


def test_the_bill_adds_up() -> None:
    found = score_network(build("micronet_v2"), "official")
    table = found.table()
    assert table["score"].sum() == pytest.approx(found.score)
    assert table["param_storage"].sum() == pytest.approx(found.param_storage)
    assert table["math_ops"].sum() == pytest.approx(found.math_ops)
    assert set(table["bits"]) == {16, 32}
    assert table["layer"].str.len().min() > 0
