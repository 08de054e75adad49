"""Chapter 04: kinds of augmentation, the paper's stages, and the dense recipes."""

from dataclasses import replace

from micronet_lib.architecture.micronet import EXPAND_RATIOS
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.lab.recipes.bases import ALS, PAPER, PAPER_POLICY, RELEASED, STAGES
from micronet_lib.lab.recipes.sweep import TRAINED, Sweep

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
    ),
    Sweep(
        name="augmentation",
        title="Ways of augmenting and mixing images",
        chapter="04_augmentation",
        axes={"augment": tuple(_AUGMENTATIONS)},
        make=lambda augment: replace(ALS, augment=_AUGMENTATIONS[augment]),
        metrics=TRAINED,
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
