"""From a recipe to its network: fresh, from a file, from another recipe, or trained.

The identity of recipe and seed is the address of a trained network, whatever sweeps show it:
`runs/<profile>/networks/<recipe id>-s<seed>/network.pt`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.initialization import (
    WeightDistribution,
    distribution_of,
    initialize,
)
from micronet_lib.architecture.network import Network, build
from micronet_lib.assembled_cnn.offline_teacher import TeacherLogits
from micronet_lib.augmentation.policies import (
    Policies,
    augment,
    autoaugment_policies,
    draw,
    load_policies,
    uniform_policies,
)
from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.distillation import Committee, mean_prediction
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook
from micronet_lib.lab.data.images import (
    ImageSet,
    load_dataset,
    load_split,
    normalize,
    restricted,
)
from micronet_lib.lab.host.files import sha256_of
from micronet_lib.lab.host.machine import default_device, environment, set_up
from micronet_lib.lab.host.places import POLICY_FILES, checkpoint_path, policy_path, runs_root
from micronet_lib.lab.recipes.identity import run_id
from micronet_lib.lab.recipes.inputs import input_paths
from micronet_lib.lab.recipes.profile import Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.storage.networks import pack, restore
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.storage.states import forget_states, load_own, load_state, save_own
from micronet_lib.lab.training.evaluation import logits_of
from micronet_lib.lab.training.loop import DivergedError, Run, TrainingData, train
from micronet_lib.pruning.masks import HeldMasks
from micronet_lib.pruning.schedules import PruneConfig, prune_round
from micronet_lib.scoring.dead_channels import apply_savings

NUM_RANDOM_POLICIES = 500
POLICY_SEED = 2019
TRAINED_ON_VALIDATION = (
    "the validation images were trained on: there is no validation accuracy, and no epoch is chosen"
)


def fresh_network(recipe: Recipe, seed: int) -> Network:
    """Return the network of a recipe before any training, on the CPU.

    Raises:
        InputError: unknown model, or a missing or damaged file for its initialisation.
    """
    options = dict(recipe.options)
    if recipe.width_mult != 1.0:
        options["width_mult"] = options.get("width_mult", 1.0) * recipe.width_mult
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = build(recipe.model, **options)
    if recipe.train.initialization != "default":
        distribution: WeightDistribution | None = None
        if recipe.train.initialize_from:
            source = load_published(checkpoint_path(recipe.train.initialize_from))
            distribution = distribution_of(source)
        generator = torch.Generator().manual_seed(seed)
        initialize(network, recipe.train.initialization, generator, distribution)
    return network


def network_path(recipe: Recipe, profile: Profile, seed: int) -> Path:
    """Return the path of a trained network."""
    return runs_root() / profile.name / "networks" / run_id(recipe, seed) / "network.pt"


def network_of(recipe: Recipe, profile: Profile, seed: int) -> Network:
    """Return the network at the end of a recipe, in evaluation mode on the CPU.

    Load it if the recipe trains; it must be trained already. Otherwise make it now.

    Raises:
        InputError: its network, or one that it starts from, is not on this machine.
    """
    if recipe.train.epochs:
        content = content_of(recipe, profile, seed)
        return restore(content["spec"], content["model"])
    # Always seed 0: one fresh network in forty draws a weight of exactly zero.
    network = _started(recipe, profile, seed) or fresh_network(recipe, 0)
    network = _changed(network, recipe, profile, seed)
    return apply_savings(network, recipe.savings).eval() if recipe.savings else network.eval()


def untrained(recipe: Recipe) -> Network:
    """Return a network of the kind that a recipe ends with, without training and data sets.

    It tells what weights do not decide, such as the kinds of file that can hold it. Widths that a
    recipe finds by calibrating on images, or by a search, are plain ones here.

    Raises:
        InputError: a change does not fit the network, or a published file is missing.
    """
    if recipe.checkpoint:
        network = load_published(checkpoint_path(recipe.checkpoint))
    else:
        network = fresh_network(recipe, 0) if recipe.start is None else untrained(recipe.start)
    for change in recipe.changes:
        images = torch.randn(min(change.num_images, 8), 3, 32, 32)
        searches = isinstance(change, Quantize | Allocate)  # for minutes
        network = (Quantize() if searches else change).apply(network, images)
    if recipe.savings and not recipe.train.epochs:
        network = apply_savings(network, recipe.savings)
    return network.eval()


def _changed(network: Network, recipe: Recipe, profile: Profile, seed: int) -> Network:
    """Return the network after a recipe's changes. Each reads images that it has drawn anew."""
    for index, change in enumerate(recipe.changes):
        images = torch.empty((0, 3, 32, 32))
        if change.num_images:
            known = images_of(recipe, profile, "train").images
            if not 0 <= change.num_images <= len(known):
                raise InputError(
                    f"{type(change).__name__}.num_images is {change.num_images}; the data set "
                    f"{profile.dataset} has {len(known)} training images for it"
                )
            drawn = torch.Generator().manual_seed(seed + 1000 * recipe.depth + index)
            images = known[torch.randperm(len(known), generator=drawn)[: change.num_images]]
            policies, _ = policies_of(recipe, profile)
            draws = draw(
                policies, len(images), drawn, images.device,
                crop=recipe.augment.crop, flip=recipe.augment.flip,
            )  # fmt: skip
            images = normalize(augment(images, draws))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed + 1000 * recipe.depth + index)  # new layers draw their weights
            network = change.apply(network, images)
    return network


def _started(recipe: Recipe, profile: Profile, seed: int) -> Network | None:
    """Return the network that a recipe starts from, or None if it starts fresh."""
    if recipe.checkpoint:
        return load_published(checkpoint_path(recipe.checkpoint))
    return None if recipe.start is None else network_of(recipe.start, profile, seed)


def content_of(recipe: Recipe, profile: Profile, seed: int) -> dict[str, Any]:
    """Return what `train_network` saved: spec, model, best, masks, curve, notes, env and speed.

    Raises:
        InputError: it is not on this machine.
    """
    path = network_path(recipe, profile, seed)
    content = load_own(path, run_id(recipe, seed))
    if content is None:
        raise InputError(f"no trained network at {path}: measure its point first")
    return content


def inputs_of(recipe: Recipe, profile: Profile, seed: int) -> dict[str, str]:
    """Return name -> sha256 of all files that decide a recipe's network.

    Files of its own step are read now. Those of networks that it needs are from their training.

    Raises:
        InputError: a needed network is not on this machine.
    """
    found = {path.name: sha256_of(path) for path in input_paths(recipe) if path.is_file()}
    for other in recipe.needs:
        if other.train.epochs:
            before = content_of(other, profile, seed)["env"].get("inputs", {})
        else:
            before = inputs_of(other, profile, seed)
        found = before | found
    return found


def commits_of(recipe: Recipe, profile: Profile, seed: int) -> list[str]:
    """Return the commits of the code that trained the networks that a recipe needs.

    Raises:
        InputError: a needed network is not on this machine.
    """
    found: list[str] = []
    for other in recipe.needs:
        if other.train.epochs:
            env = content_of(other, profile, seed)["env"]
            found += env.get("commits", [env["commit"]])
        else:
            found += commits_of(other, profile, seed)
    return found


def policies_of(recipe: Recipe, profile: Profile) -> tuple[Policies | None, list[str]]:
    """Return a recipe's augmentation policies, and notes for the record.

    If the file is missing, drawn images get random policies; real images raise an error.

    Raises:
        InputError: the file is missing, damaged, or has no such set.
    """
    kind = recipe.augment.policy
    if kind == "none":
        return None, []
    if kind == "autoaugment":
        return autoaugment_policies(), []
    path = policy_path(kind) if kind in POLICY_FILES else None
    if path and (path.is_file() or profile.dataset != "embedded"):
        return load_policies(path, recipe.augment.policy_set), []
    generator = torch.Generator().manual_seed(POLICY_SEED)
    notes = [f"no file {path.name} here: random policies instead"] if path else []
    return uniform_policies(generator, NUM_RANDOM_POLICIES), notes


def images_of(recipe: Recipe, profile: Profile, split: str) -> ImageSet:
    """Return the images of a split, of the classes that a recipe learns, with its labels."""
    return _chosen(load_split(profile.dataset, split), recipe, profile)


def _chosen(images: ImageSet, recipe: Recipe, profile: Profile) -> ImageSet:
    config = recipe.train
    return restricted(images, profile.dataset, config.num_classes, config.labels)


def training_data(
    recipe: Recipe, profile: Profile, device: torch.device
) -> tuple[TrainingData, list[str]]:
    """Return the images that a recipe trains on at a profile, and notes for the record."""
    config = recipe.train
    data = load_dataset(profile.dataset)
    learned = _chosen(data.train if config.hold_out else data.everything, recipe, profile)
    policies, notes = policies_of(recipe, profile)
    validation = None
    if config.hold_out:
        validation = _chosen(data.validation, recipe, profile)
        validation = validation.first(config.num_validation).to(device)
    else:
        notes = [*notes, TRAINED_ON_VALIDATION]
    return (
        TrainingData(
            learned.first(config.num_images).to(device),
            validation,
            _chosen(data.test, recipe, profile).to(device) if config.watch_test else None,
            policies,
        ),
        notes,
    )


def train_network(
    recipe: Recipe, profile: Profile, seed: int, name: str, progress: bool = True
) -> None:
    """Train a network, or resume its training, and write it to its address.

    The caller holds the lock of its folder.

    Args:
        recipe: resolved for the profile. Of several rounds of pruning only the last is trained.
        profile: names the data set.
        seed: of all random numbers; every round of pruning draws anew.
        name: label of the progress bar, such as `stages/3.0-orn`.
        progress: show a bar on stderr.

    Raises:
        InputError: a missing file or network, or a folder that cannot be written.
        DivergedError: a loss, a weight or a logit became NaN or infinite. It carries the run's
            curve, notes and env.
    """
    device, key = default_device(), run_id(recipe, seed)
    folder = network_path(recipe, profile, seed).parent
    set_up(device)
    data, notes = training_data(recipe, profile, device)
    load_own(folder / "network.pt", key)  # renames a damaged file, so that it is not overwritten
    state = load_state(folder, key)
    data = replace(data, taught=_answers_of(recipe, profile, seed, data))
    network, hooks, masks = _begin(recipe, profile, seed, data, state)
    planned = _planned(network, recipe)
    _check_classes(network, data)
    teacher = _teacher_of(recipe, profile, seed, device)
    inputs, before = inputs_of(recipe, profile, seed), commits_of(recipe, profile, seed)
    run = Run(network, recipe, data, seed + 1000 * recipe.depth, hooks, teacher, inputs, planned)
    if state is not None:
        run.load_state_dict(state)
        del state
    try:
        trained = train(run, folder, key, name, progress)
    except DivergedError as error:
        env = environment(device, run.seconds, [*run.commits, *before], inputs)
        error.content = {"curve": run.curve, "notes": notes, "env": env}
        raise
    content = {
        **pack(trained.network),
        "best": trained.best_state,
        "masks": masks,
        "curve": trained.curve,
        "images_per_s": trained.images_per_s,
        "notes": notes,
        "env": environment(device, trained.seconds, [*trained.commits, *before], inputs),
    }
    save_own(folder / "network.pt", key, content)
    forget_states(folder)


def _check_classes(network: Network, data: TrainingData) -> None:
    """Raise `InputError` if a network has no logit for some class that it would learn."""
    there, needed = network.classifier.out_features, int(data.train.targets.max()) + 1
    if there < needed:
        raise InputError(
            f"the network tells {there} classes apart, and {needed} are to be learned: set "
            "options.num_classes, or train.num_classes"
        )


def _teacher_of(
    recipe: Recipe, profile: Profile, seed: int, device: torch.device
) -> nn.Module | None:
    """Return the teacher, or all teachers as one, on a device.

    None without one, and where its answers were stored before.
    """
    if recipe.teacher is None or recipe.distillation.offline:
        return None
    teachers = [fold_batch_norm(network_of(each, profile, seed)) for each in recipe.teachers]
    teacher = teachers[0] if len(teachers) == 1 else Committee(teachers)
    return teacher.to(device).requires_grad_(False)


def _answers_of(recipe: Recipe, profile: Profile, seed: int, data: TrainingData) -> Tensor | None:
    """Return the logits of an offline teacher for the training images, or None without one."""
    if recipe.teacher is None or not recipe.distillation.offline:
        return None
    logits = [stored_answers(each, profile, seed, data.train) for each in recipe.teachers]
    device = data.train.images.device
    return (logits[0] if len(logits) == 1 else mean_prediction(logits)).to(device)


def stored_answers(teacher: Recipe, profile: Profile, seed: int, learned: ImageSet) -> Tensor:
    """Return a teacher's logits for images, `[N, C]` on the CPU, and keep them beside its network.

    They are computed once for the same weights and images, without augmentation.

    Raises:
        InputError: the teacher's network is not on this machine, or stored logits are for another
            data set or number of images.
    """
    network = network_of(teacher, profile, seed)
    digests = (_digest(network.state_dict().values()), _digest([learned.images]))
    # Beside the teacher's folder, whose lock another process may hold.
    folder = network_path(teacher, profile, seed).parent
    path = folder.with_name(f"{folder.name}-answers-{digests[1][:8]}.pt")
    key = "-".join(digests)
    found = load_own(path, key)
    if found is None:
        folded = fold_batch_norm(network).to(learned.images.device)
        with torch.no_grad():
            logits = logits_of(folded, learned.images).float().cpu()
        found = {"dataset": profile.dataset, "logits": logits}
        save_own(path, key, found)
    return TeacherLogits(found["dataset"], found["logits"]).of(profile.dataset, len(learned))


def _digest(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _begin(
    recipe: Recipe,
    profile: Profile,
    seed: int,
    data: TrainingData,
    state: Mapping[str, Any] | None,
) -> tuple[Network, list[Hook], dict[str, Tensor]]:
    """Return the network to train, on its device, with its hooks and the masks of a round.

    Args:
        recipe: see `train_network`, as the next two.
        profile: names the data set.
        seed: of all random numbers.
        data: what is trained on.
        state: training state to resume from, or None.
    """
    device = data.train.images.device
    if recipe.prune.sparsities:
        network, masks = _begin_round(recipe, profile, seed, data, state is not None)
        network = network.to(device)
        return network, [HeldMasks(network, masks, recipe.prune.mask_updates)], masks
    planned = state.get("planned") if state else None
    if planned:
        network = restore(planned["spec"], planned["model"])
    else:
        network = _started(recipe, profile, seed) or fresh_network(recipe, seed)
        network = _changed(network, recipe, profile, seed)
    network = network.to(device)
    return network, [hook for change in recipe.changes for hook in change.hooks(network)], {}


def _planned(network: Network, recipe: Recipe) -> dict[str, Any] | None:
    """Return the content of a file with the network, if changes have computed it from images.

    Another processor rounds such sums in another way and may plan other widths or zeros. So a
    training state holds the plan, and a run resumed elsewhere goes on with it.
    """
    if not any(change.num_images for change in recipe.changes):
        return None
    made = pack(network)
    return {**made, "model": {name: value.clone() for name, value in made["model"].items()}}


def _begin_round(
    recipe: Recipe, profile: Profile, seed: int, data: TrainingData, resumed: bool
) -> tuple[Network, dict[str, Tensor]]:
    """Return the network to train in a round of pruning, and its masks.

    If the round is resumed, the training state replaces its weights.
    """
    config = recipe.prune
    assert recipe.parent is not None
    before = content_of(recipe.parent, profile, seed)
    which = "best" if config.threshold_from == "last_epoch" else "model"
    network = restore(before["spec"], before[which])
    rewound = None
    if config.rewind != "none":
        rewound = before["model"] if resumed else _early_weights(recipe, profile, seed, data)
    index = len(config.sparsities) - 1
    masks = prune_round(network, config, index, before["masks"] or None, before["model"], rewound)
    return network, masks


def _early_weights(
    recipe: Recipe, profile: Profile, seed: int, data: TrainingData
) -> dict[str, Tensor]:
    """Return the dense run's weights that a round rewinds to, by repeating its first steps.

    They are the same to the last bit on a CPU, and those of a run with the same seed on a GPU.
    """
    dense, device = replace(recipe, prune=PruneConfig()), data.train.images.device
    teacher = _teacher_of(recipe, profile, seed, device)
    run = Run(fresh_network(dense, seed).to(device), dense, data, seed, teacher=teacher)
    run.run_steps(recipe.prune.steps_kept(run.steps * dense.train.epochs))
    return {name: value.cpu() for name, value in run.network.state_dict().items()}
