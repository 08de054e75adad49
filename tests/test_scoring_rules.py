from math import ceil, log2

import pytest
import torch
from torch import nn

from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.operations import Work, record_operations
from micronet_lib.scoring.rules import (
    Item,
    OfficialRules,
    Precision,
    UnpricedError,
    rules_of,
)


def items_of(model: nn.Module, rules: str, shape: tuple[int, ...]) -> list[Item]:
    return [item for item in score_network(model, rules, shape).items if item.count]


@pytest.fixture
def half_empty() -> nn.Sequential:
    conv = nn.Conv2d(8, 4, 3, padding=1, bias=False)
    conv.weight.data.fill_(1.0)[:, ::2] = 0  # 144 of 288 weights are left
    return nn.Sequential(conv, nn.BatchNorm2d(4))


# One row a rule set: multiplications, additions, parameters, mask positions on a 5 x 5 picture.
OUTPUTS = 4 * 5 * 5
BY_HAND = {
    "first": (OUTPUTS * 36, OUTPUTS * 36 * 71 / 72, 144, 0),
    "revised": (OUTPUTS * 36, OUTPUTS * 36, 148, 0),
    "published": (OUTPUTS * 36, OUTPUTS * 36, 148, 288),
    "official": (OUTPUTS * 36, OUTPUTS * 35 + OUTPUTS, 148, 288),
    "official_quirk": (OUTPUTS * 36, OUTPUTS * 35 + OUTPUTS, 148, 288),
}


@pytest.mark.parametrize("rules", BY_HAND)
def test_a_sparse_convolution_by_hand(rules: str, half_empty: nn.Sequential) -> None:
    items = items_of(half_empty, rules, (8, 5, 5))
    totals = [
        sum(item.count for item in items if item.quantity == quantity)
        for quantity in ("mult", "add", "param", "mask")
    ]
    assert totals == pytest.approx(BY_HAND[rules])
    widths = {item.quantity: item.bits for item in items}
    assert widths == {"mult": 16, "add": 32, "param": 16} | ({"mask": 1} if totals[3] else {})


def test_dense_tensors_need_no_mask_officially_but_get_one_from_the_authors() -> None:
    conv = nn.Conv2d(8, 4, 1)
    masks = {
        rules: sum(i.count for i in items_of(conv, rules, (8, 2, 2)) if i.quantity == "mask")
        for rules in ("published", "official")
    }
    assert masks == {"published": 32, "official": 0}


def test_the_classifier_by_hand() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 10))
    linear[1].weight.data[:, 0] = 0  # 50 weights
    linear[1].bias.data.fill_(1.0)[0] = 0
    published = score_network(linear, "published", (6, 1, 1))
    assert (published.num_mults, published.num_params) == (50, 59)
    assert published.num_adds == pytest.approx(5 * 10 * 5 / 6)  # their bias is stored, not added
    official = score_network(linear, "official", (6, 1, 1))
    assert (official.num_mults, official.num_adds, official.num_params) == (50, 50, 60)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw = nn.Conv2d(4, 12, 1, bias=False)
        self.deep = nn.Conv2d(12, 12, 1, groups=12, bias=False)
        self.back = nn.Conv2d(12, 4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.back(self.deep(self.dw(x)))
        return out * out.mean((2, 3), keepdim=True).sigmoid() + x


def test_gates_and_residuals_are_free_only_for_the_authors() -> None:
    def adds_and_mults(rules: str) -> dict[str, float]:
        items = items_of(Gated(), rules, (4, 3, 3))
        return {f"{i.kind}.{i.quantity}": i.count for i in items if i.kind in ("gate", "residual")}

    assert adds_and_mults("published") == {}
    assert adds_and_mults("official") == {"gate.mult": 36, "residual.add": 36}
    assert adds_and_mults("official_quirk") == {"gate.mult": 36, "residual.add": 12 * 9}


def test_the_quirk_needs_a_depthwise_convolution() -> None:
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.relu()

    adds = [i.count for i in items_of(Plain(), "official_quirk", (4, 3, 3)) if i.kind == "residual"]
    assert sum(adds) == 36


def test_a_network_that_costs_nothing_has_an_empty_bill() -> None:
    found = score_network(nn.Identity(), "official", (3, 4, 4))
    assert found.score == 0
    assert found.table().empty


def tree_adds(n: int, width: int) -> float:
    """Total bit width of the additions of a balanced tree over n products."""
    total, values = 0.0, [width] * n
    while len(values) > 1:
        pairs = [max(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        total += sum(pairs)
        values = [w + 1 for w in pairs] + values[len(pairs) * 2 :]
    return total


def test_accumulators_by_hand() -> None:
    """w4a8: products of 12 bits, summed in fp32, in an exact integer, in a growing tree."""
    for terms in (2, 4, 8, 64):
        model = nn.Sequential(nn.ReLU(), nn.Conv2d(terms, 1, 1, bias=False))
        widths = {}
        for accumulator in ("fp32", "integer", "adder_tree"):
            rules = rules_of("official", 4, 8, accumulator)
            items = [i for op in record_operations(model, (terms, 1, 1)) for i in rules.price(op)]
            (add,) = [i for i in items if i.quantity == "add" and i.kind == "conv"]
            widths[accumulator] = add.count * add.bits
        assert widths["fp32"] == 32 * (terms - 1)
        assert widths["integer"] == (12 + ceil(log2(terms))) * (terms - 1)
        assert widths["adder_tree"] == pytest.approx(tree_adds(terms, 12))


def test_quantised_multiplications_cost_the_wider_input_and_the_image_has_eight_bits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    rules = OfficialRules(precision=Precision(weight_bits=2, activation_bits=4))
    items = [i for op in record_operations(model, (3, 1, 1)) for i in rules.price(op)]
    products = [i.bits for i in items if i.quantity == "mult"]
    assert products == [8, 16, 4, 16]  # each followed by the rescaling of its outputs


def test_a_layer_without_bias_and_batch_norm_is_charged_none() -> None:
    for rules in BY_HAND:
        found = score_network(nn.Conv2d(8, 4, 1, bias=False), rules, (8, 5, 5))
        assert (found.num_params, found.num_adds) == (32, 25 * 4 * 7)


def test_the_widths_of_a_layer_go_before_those_of_the_rules() -> None:
    class Layer(nn.Conv2d):
        weight_bits, activation_bits, accumulator_bits = 2, 4, 12

    model = nn.Sequential(Layer(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    model[1].weight.data.fill_(1.0)
    own = [("mult", 12, 4), ("add", 8, 32), ("mult", 4, 16), ("param", 4, 16), ("param", 12, 2)]
    half = [("mult", 16, 16), ("add", 12, 32), ("param", 16, 16)]
    eight = [("mult", 16, 8), ("add", 12, 32), ("mult", 4, 16), ("param", 4, 16), ("param", 16, 8)]
    for rules, rest in ((OfficialRules(), half), (rules_of("official", 8, 8), eight)):
        items = [item for item in score_network(model, rules, (3, 1, 1)).items if item.count]
        assert [(i.quantity, i.count, i.bits) for i in items] == own + rest


READINGS = ("official_integer", "official_adder_tree")


@pytest.mark.parametrize("reading", READINGS)
def test_narrow_sums_count_where_a_layer_proves_them(reading: str) -> None:
    class Layer(nn.Conv2d):
        weight_bits, activation_bits, accumulator_bits = 2, 4, 12

    model = Layer(4, 4, 1)
    model.weight.data.fill_(1.0)
    adds = [
        (item.count, item.bits)
        for item in score_network(model, reading, (4, 1, 1)).items
        if item.quantity == "add"
    ]
    tree = tree_adds(4, 6) / 3
    assert adds == [(12, pytest.approx(12 if reading == READINGS[0] else tree)), (4, 12)]
    model.accumulator_bits = 3  # less than any addition of the tree
    items = score_network(model, reading, (4, 1, 1)).items
    assert {item.bits for item in items if item.quantity == "add"} == {3}
    with pytest.raises(UnpricedError, match=reading):
        score_network(nn.Conv2d(5, 4, 1), reading, (5, 1, 1))


def test_what_a_layer_says_of_its_storage_and_work_is_charged() -> None:
    class Layer(nn.Conv2d):
        weight_bits, activation_bits, accumulator_bits = 2, 4, 12
        scale_bits, bias_bits, constant_bits = 5, 7, 72
        work = Work({3: 2, 6: 1}, {5: 4, 8: 1})

    items = score_network(Layer(5, 4, 1), "official", (5, 2, 3)).items
    found = [(i.quantity, i.count, i.bits) for i in items if i.count]
    assert found == [
        *[("mult", 12, 3), ("mult", 6, 6), ("add", 30, 32)],  # six positions
        *[("add", 24, 32), ("mult", 24, 16), ("param", 4, 5)],  # biases, scales
        *[("param", 20, 2), ("param", 4, 7), ("param", 2.25, 32)],
    ]
    tree = score_network(Layer(5, 4, 1), "official_adder_tree", (5, 2, 3)).items
    sums = [(i.count, i.bits) for i in tree if i.quantity == "add"]
    assert sums == [(24, 5), (6, 8), (24, 12)]


def test_widths_of_activations() -> None:
    class Act(nn.ReLU):
        activation_bits = 4

    class Product(nn.Module):
        activation_bits = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x

    widths = [
        [(i.quantity, i.bits) for i in items_of(model, "official", (1, 2, 2))]
        for model in (Act(), Product())
    ]
    assert widths == [[("mult", 4)], [("mult", 4), ("add", 32), ("mult", 16)]]


def test_what_the_authors_never_counted_is_refused_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        score_network(nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)), "published", (3, 4, 4))
    assert "max" in str(caught.value)
    assert "1.max" in str(caught.value)


def test_wrong_rules_are_refused() -> None:
    for given, says in (
        (("officials",), "'officials'; choose from first"),
        (("official", 8, 8, "int"), "'int'; choose from fp32"),
        (("official", 8), "given together"),
        (("official", 33, 8), "from 1 to 32"),
        (("official", 0, 0, "integer"), "needs weight and activation bits"),
        (("published", 8, 8), "use official"),
    ):
        with pytest.raises(InputError, match=says):
            rules_of(*given)


@pytest.mark.parametrize("name", ["official_integer", "official_adder_tree"])
def test_a_rule_set_keeps_its_accumulator_at_given_widths(name: str) -> None:
    own = rules_of(name)
    assert isinstance(own, OfficialRules)
    assert rules_of(name, 8, 8).accumulator == own.accumulator != "fp32"
    assert rules_of("official", 8, 8, "integer").accumulator == "integer"
