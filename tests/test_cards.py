"""Every number of a method card is computed, recorded or cited.

The test collects what the cards print in digits and compares it with `sources`, digit by digit. A
new number needs a line there; a number that is gone takes its line along.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from micronet_lib.adjustable_quantization import MAX_BITS
from micronet_lib.adjustable_quantization.ranges import SCALES, SHIFTS
from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.assembled_cnn.corruptions import CORRUPTIONS, SEVERITIES
from micronet_lib.assembled_cnn.drop_block import DropBlockConfig
from micronet_lib.assembled_cnn.perturbations import PERTURBATIONS, perturb
from micronet_lib.augmentation.image_ops import CROP_FILL, CROP_PADDING
from micronet_lib.augmentation.policies import draw
from micronet_lib.beyond.allocation import BIAS_WIDTHS, WEIGHT_WIDTHS
from micronet_lib.beyond.changes import Allocate
from micronet_lib.beyond.sensitivity import ACTIVATION_WIDTHS
from micronet_lib.early_exit import AddExit
from micronet_lib.lab import records
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.pruning.schedules import PAPER_PRUNING
from micronet_lib.scoring.rules import FREEBIE_BITS, FULL_BITS
from micronet_lib.ternary import Ternarize

TEXTS = Path(__file__).resolve().parent.parent / "book" / "src"
ENTRIES = ("Suggested values", "Cost", "Measured effect", "Differences")
MARK = ":class-card: method-card"
PAGES = [p.stem for p in sorted(TEXTS.glob("*.md")) if MARK in p.read_text(encoding="utf-8")]

# What holds digits and is no number: code, the target of a link, a place in a paper.
NO_NUMBERS = re.compile(
    r"\{[\w:]+\}`[^`]*`|`[^`]*`|\]\([^)]*\)|"
    r"\b(?:table|figure|section|equation|problem)s? [\d.]+(?:(?:,| and| to) [\d.]+)*",
    re.IGNORECASE,
)
# Within a word or a name (`v1`, `3x3`, `ResNet-50`, `WRN-28-10`) digits are no number.
NUMBER = re.compile(
    r"(?<![\w.-])-?(?:\d{1,3}(?: \d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?(?!\w|\.\d)(?P<percent> %)?"
)

TWEAKS = ("sk_ratio", "big_little", "blur")  # of Assemble-ResNet-50
Rows = Sequence[tuple[str, float]]


# ------------------------------------------------------------------------------------- the sources


def printed(stem: str, point: str, metric: str, source: str = "") -> float:
    """A row of `data/paper/`; `source` where several have printed that number."""
    rows = records.paper(stem).query("point == @point and metric == @metric")
    return float((rows.query("source == @source") if source else rows)["value"].item())


def measured(sweep: str, point: str, metric: str, profile: str = "full") -> float:
    """The mean of the committed records of a point."""
    rows = records.measured(SWEEPS[sweep], profile).set_index("point")
    return float(rows.at[point, metric])


def ternary_loss(network: str) -> float:
    """The points of error that TTQ adds."""
    floats = printed("ternary", network, "error_percent_float")
    return printed("ternary", network, "error_percent_ttq") - floats


def recipe(sweep: str, point: str) -> Recipe:
    return SWEEPS[sweep].point(point).recipe


def num_params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def resnet_size(side: int, **options: object) -> tuple[int, float]:
    """Parameters and MACs of a ResNet for ImageNet, counted without contents."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build("resnet", num_classes=1000, **options).eval()
        network(torch.empty(1, 3, side, side))
    return num_params(network), counter.get_total_flops() / 2


def below_table_2() -> tuple[int, int, float, float]:
    """How many ratios agree in storage, of how many; the range of how far operations are lower."""
    names = {"param_storage_millions": "param_storage", "math_ops_millions": "math_ops"}
    pairs = {name: (f"revised.{ours}", 1e-6) for name, ours in names.items()}
    rows = records.beside_paper(records.measured(SWEEPS["expand_ratio"]), "architecture", pairs)
    rows = rows.set_index("metric")
    storage, ops = (rows.loc[name] for name in pairs)
    agree = [f"{row.measured:.2f}" == row.printed for row in storage.itertuples()]
    lower = -100 * ops["difference"] / ops["paper"]
    return sum(agree), len(agree), lower.min(), lower.max()


def frames() -> int:
    """Frames of all sequences of an image."""
    image, generator = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.Generator()
    return sum(perturb(image, name, generator).shape[1] for name in PERTURBATIONS)


def share_of_mirrored() -> float:
    return draw(None, 10_000, torch.Generator().manual_seed(0)).flips.double().mean().item()


@cache
def sources() -> Mapping[str, Mapping[str, Rows]]:
    """Page -> entry -> each number as the card prints it, in its order, and what it is."""
    trimmed = ("v1_pr_60-sixth", "v2_pr_60-sixth")
    changes = [measured("free_savings", each, "max_logit_difference") for each in trimmed]
    agree, ratios, least, most = below_table_2()
    classes, features = build(PAPER.model).classifier.weight.shape
    ladder = records.read_sweep(SWEEPS["beyond"], "day", MEASURED)
    minutes = [run.env["wall_s"] / 60 for run in ladder if run.curve]
    top1 = [run.metrics["top1"] for run in ladder if run.point in ("allocated_31", "allocated_28")]
    tweaks = {name: recipe("assembled", "E11").options[name] for name in TWEAKS}
    alpha, beta = tweaks["big_little"]
    resnet, assembled = resnet_size(224), resnet_size(256, **tweaks)
    exit_head = recipe("early_exit", "block_3").changes[0]
    assert isinstance(exit_head, AddExit)
    return {
        "01_architecture": {
            "Suggested values": [
                ("3", ARCHITECTURES["micronet_v1"].expand_ratio),
                ("2.5", ARCHITECTURES["micronet_v2"].expand_ratio),
                ("0.99", 1 - PAPER.train.bn_momentum),
                ("0.3", PAPER.train.dropout),
            ],
            "Cost": [
                ("464 918", num_params(build("micronet_v1_released"))),
                ("458", measured("expand_ratio", "3.0", "revised.num_params") / 1e3),
                ("16", FREEBIE_BITS),
                ("0.229", measured("expand_ratio", "3.0", "revised.param_storage") / 1e6),
                ("58.6", measured("expand_ratio", "3.0", "revised.math_ops") / 1e6),
                ("0.0119", measured("expand_ratio", "3.0", "revised.score")),
            ],
            "Measured effect": [("7", agree), ("7", ratios), ("0.9", least), ("3.1", most)],
        },
        "02_srip": {
            "Suggested values": [
                ("1.0", printed("srip", "paper", "coef")),
                ("0.7", printed("srip", "code", "coef")),
            ],
        },
        "03_label_smoothing": {
            "Suggested values": [
                ("0.2", printed("label_smoothing", "paper", "smoothing")),
                ("0.2", printed("label_smoothing", "paper", "temperature")),
                ("0.3", printed("label_smoothing", "released_dense", "smoothing")),
                ("0.1", printed("label_smoothing", "released_prune", "smoothing")),
            ],
            "Cost": [("100", classes), ("106", features)],
        },
        "04_augmentation": {
            "Suggested values": [
                ("4", CROP_PADDING),
                ("128", CROP_FILL),
                ("0.5", share_of_mirrored()),
            ],
            "Differences": [("1.0", printed("pruning", "training", "cutmix_alpha", "kim2020"))],
        },
        "05_pruning": {
            "Suggested values": [
                ("0.6", printed("pruning", "paper", "sparsity_percent") / 100),
                ("4", printed("pruning", "paper", "rounds")),
                *zip(("0.15", "0.30", "0.45", "0.60"), PAPER_PRUNING.sparsities, strict=True),
            ],
        },
        "06_scoring": {
            "Suggested values": [("16", FREEBIE_BITS), ("32", FULL_BITS)],
            "Measured effect": [
                ("0.005445", measured("published", "v1_pr_60", "published.score")),
                ("0.005340", measured("free_savings", trimmed[0], "published.score")),
                ("0.005460", measured("published", "v1_pr_60", "official.score")),
                ("0.005354", measured("free_savings", trimmed[0], "official.score")),
                ("10 000", measured("free_savings", trimmed[0], "same_predictions")),
                ("3e-14", max(changes)),
                ("4.0e-6", measured("free_savings", trimmed[0], "max_logit_difference_stored")),
                ("4.6e-6", measured("free_savings", trimmed[1], "max_logit_difference_stored")),
            ],
            "Differences": [
                ("0.0049", printed("scoring", "v1_pr_60", "score_first")),
                ("0.0039", printed("scoring", "v1_pr_60", "slipped_score")),
                ("0.0051", printed("scoring", "v1_pr_60", "score_revised")),
                ("0.0054", printed("scoring", "v1_pr_60", "score_final")),
                ("0.0039", printed("scoring", "v1_pr_60", "slipped_score")),
            ],
        },
        "07_early_exit": {
            "Suggested values": [
                ("0.85", printed("early_exit", "osi_final", "threshold")),
                ("136", AddExit().hidden_chs),
                ("800", printed("early_exit", "osi_training", "epochs")),
                ("64", exit_head.hidden_chs),
                ("2", exit_head.stride),
            ],
            "Measured effect": [
                ("0.85", printed("early_exit", "osi_final", "threshold")),
                ("36.3", printed("early_exit", "osi_block_4-0.85", "exit_rate_percent")),
                ("79.94", printed("early_exit", "osi_block_4-0.85", "top1_percent")),
                ("0.0062", printed("early_exit", "osi_block_4-0.85", "score")),
            ],
        },
        "08_ternary": {
            "Suggested values": [
                ("0.05", Ternarize().threshold),
                ("30", printed("ternary", "ttq", "least_error_sparsity_from_percent")),
                ("50", printed("ternary", "ttq", "least_error_sparsity_to_percent")),
                ("0.15", printed("ternary", "hhi_mal", "strength")),
                ("0.45", printed("ternary", "hhi_mal", "first_scale")),
                ("0.67449", Ternarize().deviations),
            ],
            "Measured effect": [
                ("0.6", ternary_loss("resnet20")),
                ("0.4", -ternary_loss("resnet56")),
                ("80.13", printed("ternary", "msunet_v3", "top1_percent")),
                ("0.0108", printed("ternary", "msunet_v3", "score")),
                ("80.13", printed("ternary", "hhi_mal", "top1_percent")),
                ("0.0242", printed("ternary", "hhi_mal", "score_fp32_adds")),
                ("80.36", printed("ternary", "quantbin_plus", "top1_percent")),
                ("0.0384", printed("ternary", "quantbin_plus", "score")),
            ],
            "Differences": [
                ("20", printed("ternary", "hhi_mal", "epochs")),
                ("1 040", printed("ternary", "msunet_v3", "epochs")),
            ],
        },
        "09_adjustable_quantization": {
            "Suggested values": [
                *zip(("0.5", "1.3", "-0.2", "0.4"), (*SCALES, *SHIFTS), strict=True),
                ("8", MAX_BITS),
                ("3e-6", printed("adjustable_quantization", "texas_eic", "lr")),
                ("1e-3", printed("adjustable_quantization", "texas_eic", "lr_bits")),
                ("7", printed("adjustable_quantization", "texas_eic", "weight_of_labels")),
                ("85", printed("adjustable_quantization", "texas_eic", "weight_of_score")),
                ("3", printed("adjustable_quantization", "texas_eic", "epochs")),
                ("100", recipe("adjustable_quantization", "learned_4").changes[0].strength),
            ],
            "Measured effect": [
                ("75", printed("adjustable_quantization", "texas_eic", "top1_percent")),
                ("2.94", printed("adjustable_quantization", "texas_eic", "weight_bits")),
                ("4.87", printed("adjustable_quantization", "texas_eic", "activation_bits")),
                ("0.179", printed("adjustable_quantization", "texas_eic", "score_own")),
                ("0.4678", printed("adjustable_quantization", "texas_eic", "score")),
            ],
        },
        "10_assembled_cnn": {
            "Suggested values": [
                ("2", tweaks["sk_ratio"]),
                ("16", recipe("assembled", "E5").options["se_ratio"]),
                ("2", alpha),
                ("4", beta),
                ("2", printed("assembled_cnn", "R152D+SK+BL+AA", "big_little.beta")),
                # The recipe shares it among the 99 other classes, the paper among all 100.
                ("0.1", recipe("assembled", "E2").smoothing.smoothing * 100 / 99),
                ("0.2", recipe("assembled", "E3").augment.mix_alpha),
                ("0.2", recipe("assembled", "E3").augment.mix_alpha),
                ("7", DropBlockConfig().block_size),
                ("1.0", DropBlockConfig().start_keep_prob),
                ("0.9", DropBlockConfig().keep_prob),
                ("0.95", recipe("mobilenet", "M8").drop_block.keep_prob),
            ],
            "Cost": [
                ("1.6", assembled[0] / resnet[0]),
                ("1.8", assembled[1] / resnet[1]),
                ("75", len(CORRUPTIONS) * len(SEVERITIES)),
                ("1 000", measured("perturbations", "v1_pr_60", "num_examples", "day")),
                # A test set has 10 000 images.
                ("28.5", frames() * 1_000 / 10_000),
            ],
        },
        "11_beyond": {
            "Suggested values": [
                ("8", max(WEIGHT_WIDTHS)),
                ("3", min(ACTIVATION_WIDTHS)),
                ("8", max(ACTIVATION_WIDTHS)),
                ("5", min(BIAS_WIDTHS)),
                ("10", max(BIAS_WIDTHS)),
                ("10", Allocate().pre_bits),
                ("5e-4", recipe("beyond", "allocated_31").train.lr),
                ("2", recipe("beyond", "allocated_31").distillation.temperature),
            ],
            "Cost": [("9", min(minutes)), ("66", max(minutes))],
            "Measured effect": [
                # "At least", so not to be rounded up.
                ("80", math.floor(100 * min(top1))),
                (
                    "0.7",
                    measured("beyond", "allocated_31", "official.score", "day")
                    / printed("scoring", "riair", "score"),
                ),
            ],
        },
    }


# ----------------------------------------------------------------------------------- the collector


def card_of(text: str) -> str:
    """The method card of a page."""
    return text.partition(MARK)[2].partition("\n:::")[0]


def numbers_in(text: str) -> list[str]:
    """Numbers in digits, in their order. A whole 0 or 1 is as often a word, so it is left out."""
    text = re.sub(r"(\d) \\cdot 10\^\{(-?\d+)\}", r"\1e\2", text)
    found = NUMBER.finditer(NO_NUMBERS.sub(" ", text))
    kept = [each for each in found if each["percent"] or each[0] not in ("0", "1")]
    return [each[0].removesuffix(" %") for each in kept]


def entry_of(card: str, entry: str) -> str:
    (text,) = re.findall(rf"^{entry}\n: +(.+?)(?=\n\n\S|\Z)", card, re.MULTILINE | re.DOTALL)
    return text


def is_printed(number: str, value: float) -> bool:
    """Whether a value, with as many digits as the number, is that number."""
    digits = number.replace(" ", "")
    decimals = len(digits.partition("e")[0].partition(".")[2])
    return float(f"{value:.{decimals}{'e' if 'e' in digits else 'f'}}") == float(digits)


def astray(page: str, card: str, rows: Mapping[str, Rows]) -> list[str]:
    """What is wrong with the numbers of a card, a line each."""
    found = []
    for entry in ENTRIES:
        numbers = Counter(numbers_in(entry_of(card, entry)))
        known = Counter(number for number, _ in rows.get(entry, ()))
        found += [f"{page}, {entry}: {n} has no source" for n in (numbers - known).elements()]
        found += [f"{page}, {entry}: {n} is not in the card" for n in (known - numbers).elements()]
        found += [
            f"{page}, {entry}: {number}, but its source says {value:.8g}"
            for number, value in rows.get(entry, ())
            if not is_printed(number, value)
        ]
    return found + [f"{page}: no entry {entry}" for entry in rows if entry not in ENTRIES]


# --------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("page", PAGES)
def test_every_number_of_a_method_card_has_a_source_and_its_value(page: str) -> None:
    card = card_of((TEXTS / f"{page}.md").read_text(encoding="utf-8"))
    found = astray(page, card, sources().get(page, {}))
    assert not found, "\n".join(found)


def test_every_source_belongs_to_a_card() -> None:
    assert set(sources()) <= set(PAGES)


MADE = f"""
::::{{dropdown}} Method card
:::{{card}}
{MARK}

What
: A card with 99 numbers.

Equation
: One:

  $y = 77 x$

Suggested values
: $\\lambda = 0.30$ (paper), $[-0.2, 106]$, a rate of $5 \\cdot 10^{{-4}}$ and 3e-6.

Cost
: v1 has 464 918 parameters, one block of 3x3, 1 % more than WRN-28-10 and 0 of ResNet-50.

Measured effect
: 12.5 to 14 % by Table 6 and sections 3.1 and 4 of {{cite:t}}`kim2020`; see [`v1_pr_60`](#a-2).

Differences
: None, or 1.
:::
::::

The card is 88 words long.
"""
MADE_SOURCES: dict[str, Rows] = {
    "Suggested values": [
        ("0.30", 0.3),
        ("-0.2", -0.2),
        ("106", 106),
        ("5e-4", 5e-4),
        ("3e-6", 3.4e-6),
    ],
    "Cost": [("464 918", 464918), ("1", 1.2)],
    "Measured effect": [("12.5", 12.46), ("14", 13.7)],
}


def test_the_collector_finds_numbers_and_leaves_names_and_places() -> None:
    found = {entry: numbers_in(entry_of(card_of(MADE), entry)) for entry in ENTRIES}
    expected = {entry: [n for n, _ in MADE_SOURCES.get(entry, ())] for entry in ENTRIES}
    assert found == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("None, or 1.", "None, or 2.5.", "made, Differences: 2.5 has no source"),
        (" and 3e-6", "", "made, Suggested values: 3e-6 is not in the card"),
    ],
)
def test_a_number_without_a_source_and_a_source_without_a_number_are_named(
    old: str, new: str, message: str
) -> None:
    card = card_of(MADE)
    assert astray("made", card, MADE_SOURCES) == []
    assert astray("made", card.replace(old, new), MADE_SOURCES) == [message]


def test_a_number_that_its_source_does_not_have_is_named() -> None:
    rows = {**MADE_SOURCES, "Cost": [("464 918", 464917), ("1", 1.2)]}
    message = "made, Cost: 464 918, but its source says 464917"
    assert astray("made", card_of(MADE), rows) == [message]
