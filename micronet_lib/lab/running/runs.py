"""One run: from a recipe on a profile to a trained network and what it gets right."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from micronet_lib.architecture.initialization import WeightDistribution, distribution_of, initialize
from micronet_lib.architecture.micronet import MicroNet, get_architecture
from micronet_lib.augmentation.policies import (
    Policies,
    load_policies,
    uniform_policies,
)
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_dataset
from micronet_lib.lab.host.machine import default_device, set_up
from micronet_lib.lab.host.places import POLICY_FILES, checkpoint_path, data_root, policy_path
from micronet_lib.lab.recipes.identity import run_key
from micronet_lib.lab.recipes.profile import Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.storage.states import forget_states, load_own, load_state, save_own
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.lab.training.loop import Run, Trained, TrainingData, train
from micronet_lib.pruning.masks import Masks
from micronet_lib.pruning.schedules import PruneConfig, prune_round

NUM_RANDOM_POLICIES = 500
POLICY_SEED = 2019


def fresh_network(recipe: Recipe, seed: int) -> MicroNet:
    """The network of a recipe before training, on the CPU.

    Raises:
        InputError: unknown model, or a file for its initialisation that is missing or damaged.
    """
    architecture = get_architecture(recipe.model)
    if recipe.width_mult != 1.0:
        architecture = replace(architecture, width_mult=recipe.width_mult)
    torch.manual_seed(seed)
    model = MicroNet(architecture)
    if recipe.train.initialization != "default":
        distribution: WeightDistribution | None = None
        if recipe.train.initialize_from:
            source = load_published(checkpoint_path(recipe.train.initialize_from))
            distribution = distribution_of(source)
        generator = torch.Generator().manual_seed(seed)
        initialize(model, recipe.train.initialization, generator, distribution)
    return model


def policies_of(recipe: Recipe, profile: Profile) -> tuple[Policies | None, list[str]]:
    """A recipe's augmentation policies, and what a record has to say of them.

    Where the file is missing, the drawn images of `smoke` do with random policies; a measurement
    on real images does not.

    Raises:
        InputError: the file is missing, damaged, or has no such set.
    """
    kind = recipe.augment.policy
    if kind == "none":
        return None, []
    path = policy_path(kind) if kind in POLICY_FILES else None
    if path and (path.is_file() or profile.dataset != "embedded"):
        return load_policies(path, recipe.augment.policy_set), []
    generator = torch.Generator().manual_seed(POLICY_SEED)
    notes = [f"no file {path.name} here: random policies instead"] if path else []
    return uniform_policies(generator, NUM_RANDOM_POLICIES), notes


def training_data(
    recipe: Recipe, profile: Profile, device: torch.device
) -> tuple[TrainingData, list[str]]:
    """What a recipe learns from on a profile, and what a record has to say of it."""
    config = recipe.train
    data = load_dataset(profile.dataset)
    learned = data.train if config.hold_out else data.everything
    policies, notes = policies_of(recipe, profile)
    return (
        TrainingData(
            learned.first(config.num_images).to(device),
            data.validation.first(config.num_validation).to(device),
            data.test.to(device) if config.watch_test else None,
            policies,
        ),
        notes,
    )


def train_recipe(
    recipe: Recipe,
    profile: Profile,
    seed: int,
    folder: Path,
    parent: Path | None = None,
    progress: bool = True,
) -> tuple[Trained, list[str]]:
    """Train a resolved recipe, or go on with a run that was cut; keeps the network in the folder.

    A network that is there already, of a run that did not come to its record, is not trained again.

    Args:
        recipe: resolved for the profile. With rounds of pruning, only the last one is trained.
        profile: names the data set.
        seed: of everything random; every round of pruning draws anew.
        folder: for training states, and `network.pt` at the end.
        parent: the folder of the run of `recipe.parent`, for a recipe with rounds of pruning.
        progress: a bar on stderr.

    Returns:
        The trained network, and what the record has to say besides.

    Raises:
        InputError: a missing file or parent, a folder that cannot be written, a loss that is no
            number.
    """
    device, key = default_device(), run_key(recipe, seed)
    set_up(device)
    data, notes = training_data(recipe, profile, device)
    trained = _already_trained(recipe, seed, folder, device)
    if trained is not None:
        forget_states(folder)
        return trained, notes
    model, masks = fresh_network(recipe, seed), None
    if recipe.prune.sparsities:
        begun = load_state(folder, key) is not None
        masks = _begin_round(model, recipe, data, seed, parent, begun)
    drawn_from = seed + 1000 * len(recipe.prune.sparsities)
    run = Run(model.to(device), recipe, data, drawn_from, masks)
    trained = train(run, folder, key, progress)
    content = {
        "model": trained.model.state_dict(),
        "best": trained.best_state,
        "masks": masks or {},
        "curve": trained.curve,
        "images_per_s": trained.images_per_s,
    }
    save_own(folder / "network.pt", key, content)
    forget_states(folder)
    return trained, notes


def _already_trained(
    recipe: Recipe, seed: int, folder: Path, device: torch.device
) -> Trained | None:
    """What an earlier process trained to the end and kept; None if there is no such file."""
    kept = load_own(folder / "network.pt", run_key(recipe, seed))
    if kept is None or "curve" not in kept:
        return None
    model = fresh_network(recipe, seed)
    model.load_state_dict(kept["model"])
    best = {name: value.to(device) for name, value in kept["best"].items()}
    return Trained(model.to(device).eval(), best, kept["curve"], kept["images_per_s"])


def _begin_round(
    model: MicroNet,
    recipe: Recipe,
    data: TrainingData,
    seed: int,
    parent: Path | None,
    begun: bool,
) -> Masks:
    """Give a fresh network the weights that the recipe's last round begins with, in place.

    A round that has `begun` gets its weights from its training state; only the masks count then.
    """
    before = load_own(parent / "network.pt", run_key(recipe.parent, seed)) if parent else None
    if before is None:
        raise InputError(
            f"pruning to {recipe.prune.sparsities[-1]:.2%} goes on from a network that is not on "
            "this machine: measure the round before first"
        )
    config = recipe.prune
    model.load_state_dict(before["best" if config.threshold_from == "last_epoch" else "model"])
    rewound = None
    if config.rewind != "none":
        epochs = 0 if config.rewind == "initial" else config.early_epoch
        rewound = before["model"] if begun else _weights_after(recipe, data, seed, epochs)
    return prune_round(
        model,
        config,
        len(config.sparsities) - 1,
        before["masks"] or None,
        before["model"],
        rewound,
    )


def _weights_after(recipe: Recipe, data: TrainingData, seed: int, epochs: int) -> dict[str, Tensor]:
    """The dense run's weights after some epochs, by running these again.

    That is the same network to the last bit on a CPU, and one of the same seed on a GPU.
    """
    model = fresh_network(recipe, seed).to(data.train.images.device)
    dense = replace(recipe, prune=PruneConfig())
    run = Run(model, dense, data, seed)
    while run.epoch < epochs:
        run.run_epoch()
    return {name: value.cpu() for name, value in run.model.state_dict().items()}


def kept_network(recipe: Recipe, seed: int, folder: Path) -> MicroNet | None:
    """The network that an earlier run of the same recipe and seed ended in, or None."""
    weights = load_own(folder / "network.pt", run_key(recipe, seed))
    if weights is None:
        return None
    model = fresh_network(recipe, seed)
    model.load_state_dict(weights["model"])
    return model.eval()


def ratings(trained: Trained, recipe: Recipe, profile: Profile) -> dict[str, float]:
    """What a trained network gets right.

    `top1`, `top5`, `loss`, `correct` are of the test images, after the last epoch;
    `selected_top1` is of the same images after the epoch that was best on the validation images;
    `best_on_test_top1` is what the authors report, the best test accuracy after any epoch.

    Raises:
        InputError: NaN or infinite logits.
    """
    device = next(trained.model.parameters()).device
    test = load_dataset(profile.dataset).test.to(device)
    found = evaluate(trained.model, test).metrics()
    metrics = {name: found[name] for name in ("correct", "num_examples", "top1", "top5", "loss")}
    curve = trained.curve
    metrics |= {
        "validation_top1": curve["validation_top1"][-1],
        "best_validation_top1": max(curve["validation_top1"]),
        "train_loss": curve["train_loss"][-1],
        "srip_penalty": curve["srip_penalty"][-1],
        "train_images_per_s": trained.images_per_s,
    }
    if "test_top1" in curve:
        metrics["best_on_test_top1"] = max(curve["test_top1"])
    metrics["selected_top1"] = metrics["top1"]
    if not _same(trained.model.state_dict(), trained.best_state):
        best = MicroNet(trained.model.architecture).to(device)
        best.load_state_dict(trained.best_state)
        metrics["selected_top1"] = evaluate(best, test).top1
    return metrics


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def missing_files(recipe: Recipe, profile: Profile) -> str | None:
    """The first file a recipe needs that is not on this machine, as a user would look for it."""
    needed = []
    rated = recipe.checkpoint and not recipe.weight_bits and not recipe.inspect
    for name in (recipe.checkpoint, recipe.train.initialize_from):
        if name:
            needed.append(Path("kaist") / f"{name}.t7")
    if profile.dataset == "cifar100":
        if rated or recipe.train.epochs:
            needed.append(Path("cifar-100-python") / "test")
        if recipe.train.epochs:
            needed.append(Path("cifar-100-python") / "train")
            if recipe.augment.policy in POLICY_FILES:
                needed.append(policy_path(recipe.augment.policy))
    missing = [path for path in needed if not (data_root() / path).exists()]
    return str(missing[0]) if missing else None
