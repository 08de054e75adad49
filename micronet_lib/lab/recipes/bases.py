"""The dense recipes of the paper and of the released code, and the paper's stages.

Every training grid starts from one of them.
"""

from dataclasses import replace

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.label_smoothing import HARD_LABELS, PAPER_SMOOTHING
from micronet_lib.srip.penalty import SripConfig

DAYS = 40
"""Epochs of a recipe for one epoch at the profile `day`."""

DENSE = TrainConfig(epochs=600, initialization="released")
PLAIN = Recipe(model="c_efficientnet_3.0", train=DENSE)
PAPER_SRIP = SripConfig()
ORN = replace(PLAIN, train=replace(DENSE, initialization="semi_orthogonal"), srip=PAPER_SRIP)
ALS = replace(ORN, smoothing=PAPER_SMOOTHING)
PAPER_POLICY = AugmentConfig(policy="fast_autoaugment", policy_set="fa_wresnet28x10_cifar100")
STAGES = {
    "vanilla": replace(PLAIN, train=replace(DENSE, decay_all=True)),
    "no_bias_decay": PLAIN,
    "orn": ORN,
    "als": ALS,
    "fast_autoaugment": replace(ALS, augment=PAPER_POLICY),
    "cutmix": replace(ALS, augment=replace(PAPER_POLICY, mix="cutmix")),
}
"""The rows of [kim2020, Tables 2 to 4]. Each adds to the one before."""

PAPER = STAGES["cutmix"]
"""The dense network as [kim2020] describes it, but trained on 45 000 images, not on 50 000.

The other 5 000 are for validation. `recipes/paper_all_images` trains on all of them.
"""

RELEASED = Recipe(
    model="micronet_v1_released",
    train=TrainConfig(
        epochs=2400,
        cycles=4,
        lr_levels=150,
        decay_all=True,
        initialization="released",
        watch_test=True,
    ),
    srip=SripConfig(coef=0.7, definition="released"),
    smoothing=HARD_LABELS,
    augment=AugmentConfig(policy="fast_autoaugment", policy_set="all", mix="cutmix"),
)
"""The dense network as the released code trains it, by the README's command for version 1.

Four times 150 epochs of four copies of the training set, with plain cross-entropy. The code reads
`--batch_wd=False` as true. Unlike the code, the recipe holds the validation images out.
"""
