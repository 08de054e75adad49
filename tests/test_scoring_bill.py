"""The counter against the published figures: the authors' notebooks, the organisers' example."""

from pathlib import Path

import pytest
import torchvision
from small_networks import PLAIN_RULES
from torch import Tensor, nn

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import EXPAND_RATIOS
from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.places import data_root
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network, score_operations
from micronet_lib.scoring.dead_channels import apply_savings
from micronet_lib.scoring.operations import Operation, record_operations
from micronet_lib.scoring.rules import RULE_SETS, rules_of

MEASURED = Path(__file__).resolve().parent.parent / "data" / "measured" / "full"
KAIST = data_root() / "kaist"


def published(name: str) -> tuple[Operation, ...]:
    path = KAIST / f"micronet_{name}.t7"
    if not path.is_file():
        pytest.skip(f"no {path.name}: `micronet data fetch kaist` gets it")
    return record_operations(load_published(path))


# By published file: additions, multiplications, parameters, mask and score of the authors' final
# counter; the scores of their first and of the revised one.
WINNERS = {
    "v1_pr_60": (
        *(16_572_569, 18_959_092, 188_064, 14_076.75, 0.0054454026),
        {"first": 0.00490139, "revised": 0.0050597382},
    ),
    "v2_pr_30": (28_810_260, 31_029_682, 337_623, 14_724.5, 0.0092538458, {}),
    "v2_pr_60": (16_949_918, 19_169_332, 196_268, 14_724.5, 0.0056215259, {"first": 0.00506435}),
}


@pytest.mark.parametrize("name", WINNERS)
def test_the_authors_counters(name: str) -> None:
    adds, mults, params, mask, score, others = WINNERS[name]
    operations = published(name)
    found = score_operations(operations, rules_of("published"))
    assert abs(found.num_adds - adds) <= 10
    assert abs(found.num_mults - mults) <= 10
    assert (found.num_params, found.mask_params) == (params, mask)
    assert found.param_storage == params / 2 + mask
    assert found.score == pytest.approx(score, abs=1e-9)
    for rules, earlier in others.items():
        assert score_operations(operations, rules_of(rules)).score == pytest.approx(
            earlier, abs=5e-9
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


def test_the_papers_storage_row_by_rounding() -> None:
    rows = records.paper("architecture").query("metric == 'param_storage_millions'")
    for point, printed in rows.set_index("point")["value"].items():
        found = score_network(build(f"c_efficientnet_{point}_released"), "revised")
        assert round(found.param_storage / 1e6, 2) == printed
        table = found.table()
        for name in ("score", "param_storage", "math_ops"):
            assert table[name].sum() == pytest.approx(getattr(found, name))
        assert set(table["bits"]) == {16, 32}
        assert table["layer"].str.len().min() > 0
    assert len(rows) == len(EXPAND_RATIOS)


@pytest.mark.parametrize(("rules", "adds"), [("official_quirk", 395.601), ("official", 394.551)])
def test_the_organisers_efficientnet(rules: str, adds: float) -> None:
    found = score_network(torchvision.models.efficientnet_b0(), rules, (3, 224, 224))
    assert found.param_storage * 4 / 1e6 == pytest.approx(10.535, abs=5e-4)
    assert found.num_mults / 2 / 1e6 == pytest.approx(203.312, abs=5e-4)
    assert found.num_adds / 1e6 == pytest.approx(adds, abs=5e-4)
    assert found.math_ops / 1e6 == pytest.approx(203.312 + adds, abs=1e-3)


def test_what_fewer_bits_would_cost() -> None:
    operations = published("v1_pr_60")
    for weights, activations, accumulator, storage, math_ops in (
        (0, 0, "fp32", 0.00296, 0.00250),
        (8, 8, "fp32", 0.00184, 0.00217),
        (4, 8, "fp32", 0.00122, 0.00217),
        (4, 4, "fp32", 0.00122, 0.00199),
        (8, 8, "integer", 0.00184, 0.00172),
        (4, 8, "integer", 0.00122, 0.00154),
        (4, 4, "integer", 0.00122, 0.00120),
        (4, 4, "adder_tree", 0.00122, 0.00099),
    ):
        found = score_operations(
            operations, rules_of("official", weights, activations, accumulator)
        )
        assert found.param_storage / PARAM_BASE == pytest.approx(storage, abs=6e-6)
        assert found.math_ops / OPS_BASE == pytest.approx(math_ops, abs=6e-6)


def test_every_committed_score_is_counted_again() -> None:
    """Those of the published networks where the files are at hand."""
    wrong, compared = [], 0
    for sweep in ("expand_ratio", "printed_table", "published", "free_savings"):
        for path in sorted((MEASURED / sweep).glob("*.json")):
            record = records.read(path)
            checkpoint = record.recipe["checkpoint"]
            if checkpoint and not (KAIST / f"{checkpoint}.t7").is_file():
                continue
            if checkpoint:
                model = load_published(KAIST / f"{checkpoint}.t7")
            else:
                model = build(record.recipe["model"])
                for parameter in model.parameters():
                    parameter.data += (parameter == 0) & (parameter.ndim > 1)  # a draw of zero
            operations = record_operations(apply_savings(model, record.recipe["savings"]))
            for name in PLAIN_RULES:
                rules = RULE_SETS[name]
                for key, value in score_operations(operations, rules).metrics().items():
                    compared += 1
                    if record.metrics[f"{name}.{key}"] != value:
                        wrong.append(f"{path.name} {name}.{key}")
    assert not wrong
    assert compared >= 2 * len(EXPAND_RATIOS) * len(PLAIN_RULES) * 7


class TwoExits(Network):
    """Two linear layers of 4 x 4, each with a head of 4 x 2; nothing has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(4, 2, bias=False) for _ in range(2))
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def exits(self, x: Tensor) -> list[Tensor]:
        logits = []
        for layer, head in zip(self.trunk, self.heads, strict=True):
            x = layer(x)
            logits.append(head(x))
        return logits


def test_an_exit_costs_those_who_reach_it() -> None:
    operations = record_operations(TwoExits(), (4,))
    for rates, late in ((None, 1.0), ((0.0, 1.0), 1.0), ((0.75, 0.25), 0.25), ((1.0, 0.0), 0.0)):
        found = score_operations(operations, RULE_SETS["official"], rates)
        assert found.num_params == 2 * (16 + 8)
        assert found.num_mults == found.macs == found.dense_macs == 24 * (1 + late)
        assert found.num_adds == (12 + 6) * (1 + late)
        assert found.table()["score"].sum() == pytest.approx(found.score)
    for wrong in ((), (1.0,), (0.5, 0.4), (1.5, -0.5)):
        with pytest.raises(InputError):
            score_operations(operations, RULE_SETS["official"], wrong)


def test_macs_are_those_of_weights_that_are_not_zero() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    conv.weight.data.fill_(1.0)[:, 0] = 0
    found = score_network(nn.Sequential(conv, nn.ReLU()), "official", (4, 5, 5))
    assert (found.macs, found.dense_macs) == (25 * 8 * 27, 25 * 8 * 36)
    assert found.num_mults == found.macs + 25 * 8  # the ReLU
