"""Harsher readings of the rules: what each adds, by hand, and all at once."""

import pytest
from integer_networks import integer_network, random_widths

from micronet_lib.beyond.readings import harsher_readings
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network
from micronet_lib.scoring.operations import record_operations


@pytest.fixture(scope="module")
def network():
    return integer_network(widths=random_widths(5))[1]


@pytest.fixture(scope="module")
def readings(network):
    return harsher_readings(network).set_index("point")


def test_the_headline_is_the_official_score_and_nothing_is_cheaper(network, readings):
    assert readings.loc["as reported", "score"] == score_network(network, "official").score
    assert readings.loc["as reported", "more"] == 0
    assert (readings["more"].drop("as reported") > 0).all()
    assert readings["more"].idxmax() == "all of them"
    assert readings.index.is_unique


def test_each_reading_adds_what_a_hand_counts(network, readings):
    layers = [op for op in record_operations(network) if op.kind in ("conv", "linear")]
    outputs = sum(op.num_outputs for op in layers)
    filters = sum(op.out_chs for op in layers)
    more = readings["more"]
    assert more["scale multiplication"] == pytest.approx(outputs * 16 / 32 / OPS_BASE)
    assert more["scales of filters"] == pytest.approx(filters * (16 - 5) / 32 / PARAM_BASE)
    assert more["conversions"] == pytest.approx(outputs * 3 * 16 / 32 / OPS_BASE)
    swishes = sum(
        op.num_outputs
        for op in layers
        if op.name.endswith(("stem.conv", "conv_dw", "conv_reduce"))
        or (op.name.endswith("conv_expand") and ".se." not in op.name)
    )
    pre = network.widths.pre
    assert more["HardSwish's products"] == pytest.approx(swishes * pre / 32 / OPS_BASE)
    assert more["HardSwish's width"] == pytest.approx(swishes * 3 * (32 - pre) / 32 / OPS_BASE)


def test_a_signed_code_costs_a_bit_of_storage_and_at_most_a_bit_of_each_product(network, readings):
    operations = record_operations(network)
    layers = [op for op in operations if op.kind in ("conv", "linear")]
    stored = sum(op.nonzeros for op in layers) / 32 / PARAM_BASE
    products = sum(
        sum(op.work.mult_widths.values()) * op.num_outputs / op.out_chs for op in layers if op.work
    )
    more = readings.loc["codes without a zero", "more"]
    assert stored <= more <= stored + products / 32 / OPS_BASE


def test_all_of_them_are_more_than_their_sum_without_savings(readings):
    """A wider code is paid at every product, of which there are more without the savings."""
    single = readings["more"].drop(["as reported", "all of them"]).sum()
    assert readings.loc["all of them", "more"] > single


def test_a_network_in_floats_is_refused():
    with pytest.raises(InputError, match="in floats"):
        harsher_readings(integer_network(widths=None)[1])
