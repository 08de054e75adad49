"""Chapter 01: the cost of the networks, by expansion ratio."""

from micronet_lib.architecture.micronet import EXPAND_RATIOS
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Printed, Sweep

_TABLE_2 = (
    Printed("architecture", "param_storage_millions", "revised.param_storage", factor=1e-6),
    Printed("architecture", "math_ops_millions", "revised.math_ops", factor=1e-6),
    Printed("architecture", "score", "revised.score"),
)

SWEEPS = (
    Sweep(
        name="expand_ratio",
        title="C-EfficientNet-i: storage and operations by expansion ratio",
        chapter="01_architecture",
        axes={"expand_ratio": EXPAND_RATIOS},
        make=lambda expand_ratio: Recipe(model=f"c_efficientnet_{expand_ratio:.1f}_released"),
        metrics=("revised.param_storage", "revised.math_ops", "revised.score"),
        measures=(),
        printed=_TABLE_2,
    ),
    Sweep(
        name="printed_table",
        title="Table 1 as printed, by expansion ratio",
        chapter="01_architecture",
        axes={"expand_ratio": EXPAND_RATIOS},
        make=lambda expand_ratio: Recipe(model=f"table1_{expand_ratio:.1f}"),
        metrics=("revised.param_storage", "revised.math_ops", "revised.score"),
        measures=(),
        printed=_TABLE_2,
    ),
)
