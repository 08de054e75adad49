"""Fast AutoAugment's own search for sub-policies [lim2019]: density matching on K folds.

The training images are split into K folds. For each fold, a network is trained on the other folds
without any policy. Optuna's TPE sampler then proposes sets of sub-policies. A set is rated by the
network's loss on the fold's images after the set has changed them: a low loss means that the
changed images match the density of the training images. No network is trained for a proposal, which
makes the search fast. Chapter `04_augmentation`.

Deliberate differences from the published search:

- The rating is the mean over all draws of all images. The published code takes each image's best
  draw of five, so nearly any sub-policy looks good.
- Repeated sub-policies are those that agree in every number, not in the names of their operations.
- No cluster software. Trials are stored in a database, networks in files. A killed search resumes
  with them and finds the same result.

Five sub-policies are proposed together, as in the published search. With a mean this only adds
variety: one at a time, the sampler soon repeats one harmless operation.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.augmentation.policies import PROVENANCE
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet, load_split, shuffled
from micronet_lib.lab.host.files import check_output, only_one, write_atomically
from micronet_lib.lab.host.given import as_seed
from micronet_lib.lab.host.machine import default_device, environment, set_up
from micronet_lib.lab.host.places import runs_root
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import plain_recipe, recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.search.policy_trials import (
    SearchConfig,
    SubPolicy,
    compare,
    rate_policies,
    run_trials,
    without_repeats,
)
from micronet_lib.lab.storage.states import forget_states, load_own, save_own
from micronet_lib.lab.training.loop import Run, TrainingData, train

SET_NAME = "searched"

TrainFold = Callable[[ImageSet, ImageSet, int, Path], Network]


# A profile changes the budget, never the method.
BUDGETS = {
    "smoke": SearchConfig(
        folds=2,
        trials=6,
        startup=3,
        keep=3,
        set_size=2,
        num_training=600,
        epochs=1,
        num_images=40,
        num_draws=1,
        num_control=100,
    ),
    "quick": SearchConfig(
        folds=2,
        trials=100,
        keep=5,
        num_training=20000,
        epochs=3,
        width_mult=0.5,
        num_images=300,
        num_draws=1,
        num_control=2000,
    ),
    "day": SearchConfig(
        folds=2,
        trials=200,
        keep=5,
        num_images=300,
        num_draws=1,
        num_control=2000,
    ),
    "full": SearchConfig(),
}


def deal_folds(targets: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Deal images with targets int64 [N] into K folds of equal size, each class evenly.

    Returns:
        K tensors of indices, int64, each ascending, together every image once.
    """
    order = shuffled(len(targets), seed)
    in_classes = order[targets.cpu()[order].argsort(stable=True)]
    return [in_classes[fold::folds].sort().values for fold in range(folds)]


def search(
    train_fold: TrainFold,
    training: ImageSet,
    validation: ImageSet,
    config: SearchConfig,
    folder: Path,
    seed: int = 0,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Search, or resume a search, and compare the result with random policies.

    Args:
        train_fold: trains a network without any policy. Arguments: images to train on, images to
            watch, a seed, and a folder for its files.
        training: split into folds.
        validation: only for the comparison; networks and search do not see these images.
        config: the budget.
        folder: for networks and trials.
        seed: of all random numbers.
        about: further settings that distinguish the search: profile, data set, recipe.

    Returns:
        The content of a policy file: `searched`, the list of sub-policies, and `provenance`.

    Raises:
        InputError: the folder holds another search, is in use or cannot be written.
    """
    setting = {"seed": seed, **asdict(config), **(about or {})}
    with only_one(folder / "lock", f"the search in {folder.name}"):
        _same_search(folder / "setting.json", setting)
        folds = deal_folds(training.targets, config.folds, seed)
        found: list[SubPolicy] = []
        rows, networks = [], []
        for fold, held_out in enumerate(folds):
            others = torch.cat([part for other, part in enumerate(folds) if other != fold]).sort()
            learned, unseen = training.subset(others.values), training.subset(held_out)
            network = train_fold(learned, unseen, seed + fold, folder / f"fold{fold}")
            folded = fold_batch_norm(network)
            tried = _first(unseen, config.num_images)
            trials = run_trials(folded, tried, folder, fold, config, seed)
            best = sorted(trials, key=lambda trial: trial["loss"])
            found += [sub for trial in best[: config.keep] for sub in trial["sub_policies"]]
            plain = rate_policies(folded, tried, None, 1, seed)
            rows.append(
                {
                    "num_learned": len(learned),
                    "num_unseen": len(unseen),
                    "plain_loss": plain.loss,
                    "trial_losses": [round(trial["loss"], 4) for trial in trials],
                }
            )
            networks.append(folded)
        searched = without_repeats(found)
        control = compare(
            networks, _first(validation, config.num_control), searched, seed, config.num_draws
        )
    env = environment(training.images.device)
    del env["wall_s"]  # a resumed search: this process did only a part of the work
    return {
        PROVENANCE: {
            "what": "sets of least mean cross-entropy on the fold that a network has not seen",
            "setting": setting,
            "network": network.spec.name,
            "folds": rows,
            "control": control,
            "env": env,
        },
        SET_NAME: searched,
    }


def write_policies(content: dict[str, Any], path: Path) -> None:
    """Write a policy file with one line per sub-policy, so that differences are readable.

    Raises:
        InputError: the folder cannot be written.
    """
    lines = ",\n".join(f"  {json.dumps(sub_policy)}" for sub_policy in content[SET_NAME])
    provenance = json.dumps(content[PROVENANCE], indent=1, allow_nan=False)
    text = f'{{\n"{PROVENANCE}": {provenance},\n"{SET_NAME}": [\n{lines}\n]\n}}\n'
    write_atomically(path, text.encode(), f"the policies {path.name}")


def _first(data: ImageSet, num: int) -> ImageSet:
    """Return `num` of the images, evenly by class; all of them for 0 or if there are fewer."""
    return data.first(min(num, len(data)))


def _same_search(path: Path, setting: dict[str, Any]) -> None:
    """Save the settings of a search, or raise an error if the folder holds other ones."""
    text = json.dumps(setting, sort_keys=True)
    if not path.is_file():
        write_atomically(path, text.encode(), "the setting of the search")
    elif path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{path.parent} holds a search with other settings ({path.name} has them): delete the "
            "folder, or search with those"
        )


def search_recipe(profile_name: str) -> Recipe:
    """Return the recipe of a fold's network: SRIP, hard labels, only crops and mirror images."""
    recipe = PROFILES[profile_name].apply(SWEEPS["stages"].point("3.0-orn").recipe)
    config = BUDGETS[profile_name]
    epochs = config.epochs or recipe.train.epochs
    return replace(
        recipe,
        width_mult=recipe.width_mult * config.width_mult,
        train=replace(recipe.train, epochs=epochs, num_images=0),
    )


def search_policies(
    profile_name: str, seed: int = 0, output: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Search on a profile's training images, or resume, and write the policies found.

    Args:
        profile_name: a name of `PROFILES`.
        seed: of all random numbers.
        output: the policy file; by default `searched.json` in the folder of the search.

    Returns:
        The file and its content, see `search`.

    Raises:
        InputError: unknown profile, missing data, no valid seed, a folder that cannot be written,
            or Optuna not installed.
    """
    seed = as_seed(seed)
    profile, recipe = PROFILES[profile_name], search_recipe(profile_name)
    config, device = BUDGETS[profile_name], default_device()
    set_up(device)
    folder = runs_root() / profile_name / "search_policies" / f"s{seed}"
    if output is not None:
        check_output(output)

    def train_fold(learned: ImageSet, unseen: ImageSet, fold_seed: int, place: Path) -> Network:
        key = f"search {place.name}, recipe {recipe_id(recipe)}, seed {fold_seed}"
        network = fresh_network(recipe, fold_seed).to(device)
        saved = load_own(place / "network.pt", key)
        if saved is not None:
            forget_states(place)  # of a process killed after writing the network
            network.load_state_dict(saved["model"])
            return network.eval()
        data = TrainingData(learned, _first(unseen, recipe.train.num_validation))
        run = Run(network, recipe, data, fold_seed)
        network = train(run, place, key, f"search {place.name}").network
        save_own(place / "network.pt", key, {"model": network.state_dict()})
        forget_states(place)
        return network

    content = search(
        train_fold,
        _first(load_split(profile.dataset, "train"), config.num_training).to(device),
        load_split(profile.dataset, "validation").to(device),
        config,
        folder,
        seed,
        {"profile": profile_name, "dataset": profile.dataset, "recipe_id": recipe_id(recipe)},
    )
    # For readers. Not part of the setting, because a later version may add fields with defaults.
    content[PROVENANCE]["recipe"] = plain_recipe(recipe)
    path = output or folder / "searched.json"
    write_policies(content, path)
    return path, content
