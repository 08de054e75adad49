"""Settings of a training: length, optimiser, learning rates, images and rating."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from micronet_lib.architecture.initialization import INITIALIZATIONS
from micronet_lib.errors import InputError, check_choice, is_number
from micronet_lib.lab.data.images import NUM_CLASSES, Labelling

Schedule = Literal["cosine", "steps"]
Precision = Literal["fp32", "bf16"]
Optimizer = Literal["sgd", "adam", "adamw"]

MAX_EPOCHS = 1_000_000  # more is a typing error


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training. The defaults are those of [kim2020, 2.2].

    Attributes:
        epochs: passes over the training images in all; 0 trains nothing.
        cycles: repetitions of the schedule, each with fresh momentum. The released code repeats its
            dense training 4 times; the paper describes one.
        batch_size: images per step. The last, smaller batch of an epoch is dropped. The order is
            drawn anew in every epoch, so no image is always left out.
        lr: highest learning rate.
        min_lr: lowest learning rate.
        schedule: `cosine`, or `steps`: a tenth after half and again after three quarters of a
            cycle.
        warm_up: share of the training in which the learning rate first rises in a straight line
            from 0 to `lr`; the schedule takes the rest. [lee2020assembled] has 5 epochs.
        lr_levels: number of constant levels of the cosine in a cycle; 0 changes it at every step.
            The released code has 150 and starts on the second, so `lr` itself is never used.
        optimizer: `sgd` with Nesterov momentum, `adam` or `adamw`.
        momentum: Nesterov momentum, or Adam's first beta.
        weight_decay: of weights with two or more dimensions.
        decay_all: decay biases and batch norm as well.
        lr_factors: factors of the learning rate: pattern of a parameter's name -> factor. The first
            pattern that fits counts.
        relative_lr: multiply the learning rate of a parameter by the root mean square of its
            non-zero values at the start of the training.
        freeze: patterns of module names, such as `blocks.*`. Their parameters are not trained, and
            their batch norm keeps its averages.
        dropout: probability of every dropout layer.
        bn_momentum: weight of a batch in the running averages of batch norm.
        initialization: a name of `initialization.INITIALIZATIONS`, or `default` for PyTorch's.
        initialize_from: published file from whose weights `trained_distribution` draws.
        ema_decay: decay of an exponential moving average of weights and running averages, which is
            then the network that is rated; 0 for none.
        precision: `bf16` computes convolutions in bfloat16. Weights, batch norm's averages, loss,
            SRIP and optimiser stay in float32.
        hold_out: exclude the validation images from training, 5 000 of CIFAR-100's 50 000. If not,
            nothing is rated on them and no epoch is chosen.
        num_classes: classes that are learned and rated, the first ones; 0 for all.
        labels: what an image is of, its `class` or its `superclass`.
        num_images: training images, the first of each class; 0 for all.
        num_validation: validation images rated after an epoch; 0 for all.
        watch_test: rate the test images after every epoch like the authors, for
            `best_on_test_top1`. Nothing is chosen by it.

    Raises:
        InputError: a number outside its range, or an unknown name.
    """

    epochs: int = 0
    cycles: int = 1
    batch_size: int = 128
    lr: float = 0.1
    min_lr: float = 0.0005
    schedule: Schedule = "cosine"
    warm_up: float = 0.0
    lr_levels: int = 0
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-5
    decay_all: bool = False
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    relative_lr: bool = False
    freeze: tuple[str, ...] = ()
    dropout: float = 0.3
    bn_momentum: float = 0.01
    initialization: str = "default"
    initialize_from: str = ""
    ema_decay: float = 0.0
    precision: Precision = "fp32"
    hold_out: bool = True
    num_classes: int = 0
    labels: Labelling = "class"
    num_images: int = 0
    num_validation: int = 0
    watch_test: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", get_args(Schedule)),
            ("precision", get_args(Precision)),
            ("optimizer", get_args(Optimizer)),
            ("labels", get_args(Labelling)),
            ("initialization", ("default", *INITIALIZATIONS)),
        ):
            check_choice(name, getattr(self, name), known)
        for name, low, high in (
            ("epochs", 0, MAX_EPOCHS),
            ("cycles", 1, math.inf),
            ("batch_size", 2, math.inf),
            ("lr", 0, math.inf),
            ("min_lr", 0, self.lr),
            ("warm_up", 0, 1),
            ("lr_levels", 0, math.inf),
            ("momentum", 0, 1),
            ("weight_decay", 0, math.inf),
            ("dropout", 0, 1),
            ("bn_momentum", 0, 1),
            ("ema_decay", 0, 1),
            ("num_classes", 0, NUM_CLASSES),
            ("num_images", 0, math.inf),
            ("num_validation", 0, math.inf),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                kind = "whole" if isinstance(value, int) else "finite"
                limits = f"of {low} or more" if high == math.inf else f"from {low} to {high}"
                raise InputError(f"train.{name} is {value}; give a {kind} number {limits}")
        for name in ("momentum", "ema_decay"):
            if getattr(self, name) == 1:
                raise InputError(f"train.{name} is 1, which forgets nothing: give less than 1")
        if self.warm_up == 1 or (self.warm_up and self.cycles > 1):
            raise InputError(
                f"train.warm_up is {self.warm_up} with {self.cycles} cycles; give less than 1, and "
                "one cycle"
            )
        for pattern, factor in self.lr_factors.items():
            if not (is_number(factor) and 0 <= factor < math.inf):
                raise InputError(
                    f"train.lr_factors has {factor!r} for {pattern!r}; give a number from 0"
                )
        if self.epochs % self.cycles:
            raise InputError(
                f"train.epochs is {self.epochs}; give a multiple of train.cycles, {self.cycles}"
            )


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate of an optimiser step.

    Args:
        config: of the run.
        progress: fraction of the whole run before this step, in [0, 1).
    """
    if progress < config.warm_up:
        return config.lr * progress / config.warm_up
    progress = (progress - config.warm_up) / (1 - config.warm_up)
    in_cycle = progress * config.cycles % 1
    if config.schedule == "steps":
        return max(
            config.min_lr, config.lr * (0.01 if in_cycle >= 0.75 else 0.1 ** (in_cycle >= 0.5))
        )
    if config.lr_levels:
        in_cycle = (math.floor(in_cycle * config.lr_levels + 1e-9) + 1) / config.lr_levels
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * in_cycle)) / 2
