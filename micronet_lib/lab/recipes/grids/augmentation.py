"""Chapter 04: kinds of augmentation, the paper's stages, and the dense recipes."""

from dataclasses import replace

from micronet_lib.architecture.micronet import EXPAND_RATIOS
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.lab.recipes.bases import ALS, PAPER, PAPER_POLICY, RELEASED, STAGES
from micronet_lib.lab.recipes.sweep import TRAINED, Printed, Sweep

_RECIPES = {
    "paper": replace(PAPER, train=replace(PAPER.train, watch_test=True)),
    "paper_quarter": replace(PAPER, train=replace(PAPER.train, epochs=150)),
    "paper_all_images": replace(PAPER, train=replace(PAPER.train, watch_test=True, hold_out=False)),
    "released_cycle": replace(RELEASED, train=replace(RELEASED.train, epochs=600, cycles=1)),
    "released": RELEASED,
}

_AUGMENTATIONS = {
    "none": AugmentConfig(crop=False, flip=False),
    "standard": AugmentConfig(),
    "random": AugmentConfig(policy="random"),
    "fast_autoaugment": PAPER_POLICY,
    "searched": AugmentConfig(policy="searched"),
    "cutmix": AugmentConfig(mix="cutmix"),
    "mixup": AugmentConfig(mix="mixup"),
    "fast_autoaugment_cutmix": replace(PAPER_POLICY, mix="cutmix"),
}

# The stages of each table of the paper, and what its points are called there.
_TABLES = {
    "architecture": ("{}", ("vanilla", "no_bias_decay")),
    "label_smoothing": ("ratio_{}", ("orn", "als")),
    "augmentation": ("ratio_{}", ("fast_autoaugment", "cutmix")),
}
_TABLES_2_TO_4 = tuple(
    Printed(
        stem,
        f"top1_{stage}_percent",
        "top1",
        {f"{ratio}-{stage}": name.format(ratio) for ratio in EXPAND_RATIOS},
        factor=100,
    )
    for stem, (name, stages) in _TABLES.items()
    for stage in stages
)

# Points of the sweep `augmentation` that are rows of Table 4, at ratio 3.
_ROWS = {
    "standard": "stacked",
    "fast_autoaugment": "fast_autoaugment",
    "fast_autoaugment_cutmix": "cutmix",
}

SWEEPS = (
    Sweep(
        name="stages",
        title="The paper's stages, each on top of the one before, by expansion ratio",
        chapter="04_augmentation",
        axes={"expand_ratio": EXPAND_RATIOS, "stage": tuple(STAGES)},
        make=lambda expand_ratio, stage: replace(
            STAGES[stage], model=f"c_efficientnet_{expand_ratio:.1f}"
        ),
        metrics=TRAINED,
        printed=_TABLES_2_TO_4,
    ),
    Sweep(
        name="augmentation",
        title="Ways of augmenting and mixing images",
        chapter="04_augmentation",
        axes={"augment": tuple(_AUGMENTATIONS)},
        make=lambda augment: replace(ALS, augment=_AUGMENTATIONS[augment]),
        metrics=TRAINED,
        printed=tuple(
            Printed("augmentation", f"top1_{row}_percent", "top1", {point: "ratio_3.0"}, 100)
            for point, row in _ROWS.items()
        ),
    ),
    Sweep(
        name="recipes",
        title="Dense recipes: the paper's, a quarter of it, all images, and the released cycles",
        chapter="04_augmentation",
        axes={"recipe": tuple(_RECIPES)},
        make=lambda recipe: _RECIPES[recipe],
        metrics=("top1", "selected_top1", "best_on_test_top1", "validation_top1"),
    ),
)
