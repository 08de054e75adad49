"""Trials of the policy search: propose sub-policies and rate them with a network.

See `lab.search.policy_search` and chapter `04_augmentation`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from micronet_lib.augmentation.image_ops import OPERATIONS
from micronet_lib.augmentation.policies import (
    Policies,
    augment,
    compile_policies,
    draw,
    load_policies,
    uniform_policies,
)
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.host.places import policy_path
from micronet_lib.lab.host.progress import bar
from micronet_lib.lab.training.evaluation import Evaluation, logits_of, rate

SubPolicy = list[list[Any]]


@dataclass(frozen=True)
class SearchConfig:
    """The budget of a search.

    Attributes:
        folds: K; each gets its own network.
        trials: sets of sub-policies tried on a fold.
        startup: number of first trials that are random.
        keep: number of best sets of a fold that enter the result.
        set_size: sub-policies proposed together; each image draws one of them.
        num_training: training images split into folds; 0 for all.
        epochs: of a fold's network; 0 for the epochs of its recipe at the profile.
        width_mult: of a fold's network. The published searches also used a smaller network than the
            one that the policies were for.
        num_images: images of a fold on which a proposal is tried; 0 for all.
        num_draws: changes of each of these images for one proposal.
        num_control: images of the validation split for the final comparison; 0 for all.

    Raises:
        InputError: numbers that make no search.
    """

    folds: int = 5
    trials: int = 200
    startup: int = 20
    keep: int = 10
    set_size: int = 5
    num_training: int = 0
    epochs: int = 0
    width_mult: float = 1.0
    num_images: int = 0
    num_draws: int = 5
    num_control: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"folds is {self.folds}: give 2 or more, so that one can be held out")
        for name in ("trials", "startup", "keep", "set_size", "num_draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.keep > self.trials:
            raise InputError(f"keep is {self.keep}: {self.trials} trials have no more than that")


def rate_policies(
    network: torch.nn.Module, data: ImageSet, policies: Policies | None, num_draws: int, seed: int
) -> Evaluation:
    """Rate a network on images that policies have changed: the mean over all draws of all images.

    Without policies the images are rated once, unchanged. Policies of the same length get the same
    draws from the same seed, which removes much noise from a comparison.
    """
    images, targets = data.images, data.targets
    if policies is not None:
        images, targets = images.repeat(num_draws, 1, 1, 1), targets.repeat(num_draws)
        generator = torch.Generator().manual_seed(seed)
        device = images.device
        draws = draw(policies, len(images), generator, device, crop=False, flip=False)
        images = augment(images, draws)
    return rate(logits_of(network, images), targets, seconds=float("inf"))


def propose(trial: Any, set_size: int) -> list[SubPolicy]:
    """Let an Optuna trial choose sub-policies, with probabilities and levels in hundredths."""
    return [
        [
            [
                trial.suggest_categorical(f"operation_{number}_{step}", OPERATIONS),
                round(trial.suggest_float(f"probability_{number}_{step}", 0, 1, step=0.01), 2),
                round(trial.suggest_float(f"level_{number}_{step}", 0, 1, step=0.01), 2),
            ]
            for step in (1, 2)
        ]
        for number in range(1, set_size + 1)
    ]


def run_trials(
    network: torch.nn.Module,
    data: ImageSet,
    folder: Path,
    fold: int,
    config: SearchConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Run the missing trials of a fold on images that its network has not seen.

    They are stored in `trials.db` below `folder`, with one study per fold, readable by Optuna's own
    tools.

    Returns:
        All trials in order: number, loss, sub_policies.

    Raises:
        InputError: the database cannot be read or written, or Optuna is not installed.
    """
    try:
        import optuna
        import sqlalchemy.exc
    except ModuleNotFoundError as error:
        raise InputError(f"a search needs Optuna ({error}): pip install optuna") from error

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    name, database = f"fold{fold}", folder / "trials.db"
    folder.mkdir(parents=True, exist_ok=True)
    broken = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    with _in_one_line(broken, database):
        stored = optuna.create_study(
            storage=f"sqlite:///{database}", study_name=name, load_if_exists=True
        )
        known = stored.get_trials(deepcopy=False)
    # Trials run in memory and are stored when complete, so the database never holds half of one.
    study = optuna.create_study()
    study.add_trials(known[: config.trials])
    for number in bar(range(len(study.trials), config.trials), f"search {name}", "trial"):
        # A new sampler for each trial: a proposal depends on the trials before it only, not on
        # whether one process made them all.
        own = np.random.SeedSequence([seed, fold, number]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(
            seed=int(own[0]), n_startup_trials=config.startup
        )
        trial = study.ask()
        policies = compile_policies(propose(trial, config.set_size))
        found = rate_policies(network, data, policies, config.num_draws, seed)
        trial.set_user_attr("top1", found.top1)
        with _in_one_line(broken, database):
            stored.add_trial(study.tell(trial, found.loss))
    return [
        {
            "number": trial.number,
            "loss": trial.value,
            "sub_policies": propose(optuna.trial.FixedTrial(trial.params), config.set_size),
        }
        for trial in study.get_trials(deepcopy=False)
    ]


@contextmanager
def _in_one_line(broken: tuple[type[Exception], ...], database: Path) -> Iterator[None]:
    """Raise the errors of a database as `InputError`."""
    try:
        yield
    except broken as error:
        raise InputError(
            f"{database} cannot be used ({str(error).splitlines()[0]}): make room, get the right "
            "to write there, or delete it if it is damaged, and search again"
        ) from error


def without_repeats(sub_policies: Sequence[SubPolicy]) -> list[SubPolicy]:
    """Return the sub-policies in order, without those whose steps equal an earlier one's."""
    return [sub for place, sub in enumerate(sub_policies) if sub not in sub_policies[:place]]


def compare(
    networks: Sequence[torch.nn.Module],
    data: ImageSet,
    searched: Sequence[SubPolicy],
    seed: int,
    num_draws: int = 1,
) -> list[dict[str, Any]]:
    """Compare the policies found with controls, on images that no network and no trial has seen.

    `none` are the unchanged images. `random` are as many uniform sub-policies. `shuffled` has the
    found probabilities and levels with the found operations shuffled, so a gain over it comes from
    matching operation and strength. `published` is included if its file exists. The draws differ
    from those of the search.

    Returns:
        One row for each fold and type of policies: fold, policies, loss, top1.
    """
    generator = torch.Generator().manual_seed(seed)
    table = compile_policies(searched)
    order = torch.randperm(table.ops.numel(), generator=generator)
    operations = [name for sub in searched for name, _, _ in sub]
    dealt = iter(operations[place] for place in order)
    shuffled = [[[next(dealt), *step[1:]] for step in sub] for sub in searched]
    kinds: dict[str, Policies | None] = {
        "none": None,
        "searched": table,
        "shuffled": compile_policies(shuffled),
        "random": uniform_policies(generator, len(searched)),
    }
    published = policy_path("fast_autoaugment")
    if published.is_file():
        kinds["published"] = load_policies(published)
    rows = []
    for fold, network in enumerate(networks):
        for kind, policies in kinds.items():
            found = rate_policies(network, data, policies, num_draws, seed + 10**6)
            rows.append({"fold": fold, "policies": kind, "loss": found.loss, "top1": found.top1})
    return rows


def mean_controls(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the means of `compare` over the folds: type of policies -> loss and top1."""
    means = pd.DataFrame(rows).groupby("policies", sort=False)[["loss", "top1"]].mean()
    return means.to_dict("index")
