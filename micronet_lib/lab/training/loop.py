"""The one training loop: every recipe, on a CPU or a GPU, resumable to the last bit.

All random numbers of an epoch (order, augmentation, mixing, SRIP's start vectors, dropout) come
from generators that are seeded by the run's seed and the epoch's number. So a run that is killed
and resumed from its last saved epoch ends with the same weights, bit by bit, as an undisturbed one
(on the same machine, in float32 on a CPU).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from micronet_lib.architecture.network import Network
from micronet_lib.assembled_cnn.drop_block import DropBlock
from micronet_lib.augmentation.mixing import MixDraw, draw_mix, images_per_mix
from micronet_lib.augmentation.policies import Draws, Policies, augment, draw
from micronet_lib.errors import InputError, NotFiniteError
from micronet_lib.hooks import Hook
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.host.machine import COMMIT
from micronet_lib.lab.host.progress import TrainingBar
from micronet_lib.lab.recipes.optimisation import learning_rate
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.storage.curves import append_epoch, begin_curve
from micronet_lib.lab.storage.states import load_state, save_state
from micronet_lib.lab.training.captured import fastest_step, fastest_top1
from micronet_lib.lab.training.divergence import Divergence
from micronet_lib.lab.training.hooks import MomentumRestart, WeightAverage
from micronet_lib.lab.training.step import Step

CURVES = (
    "lr",
    "train_loss",
    "srip_penalty",
    "validation_top1",
    "validation_divergence",
    "test_top1",
)
RATED = ("validation_top1", "validation_divergence", "test_top1")
SAVE_EVERY_S = 30.0


class DivergedError(NotFiniteError):
    """Training stopped because a loss, a weight or a logit became NaN or infinite.

    Args:
        message: where and with what numbers, as a sentence without its full stop.
        what: that is not finite: `loss`, `weights` or `logits`.
        epoch: in which it happened, from 1.
    """

    def __init__(self, message: str, what: str, epoch: int) -> None:
        super().__init__(message)
        self.what, self.epoch = what, epoch
        self.content: dict[str, Any] = {}
        """Curve, notes and env of the run, as of a trained network; filled by `train_network`."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The images of a training run, all on its device.

    Attributes:
        train: images to learn from.
        validation: rated after every epoch; None if these images are trained on.
        test: rated after every epoch if the recipe has `watch_test`, else None.
        policies: the augmentation policies, or None.
        taught: logits of an offline teacher for the training images, float32 [N,C], or None.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None = None
    policies: Policies | None = None
    taught: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Decisions:
    """The random decisions of an epoch, on the CPU.

    Attributes:
        order: of the training images, int64 [N].
        draws: of augmentation, for the images in this order.
        mixes: of all batches, stacked; None without mixing.
    """

    order: Tensor
    draws: Draws
    mixes: MixDraw | None


@dataclass(eq=False)
class Trained:
    """The result of a training run.

    Attributes:
        network: after the last epoch, in evaluation mode; the moving average if there is one.
        best_state: state dict after the epoch that was best on the validation images: nearest to
            the teacher if there is one, else most accurate. After the last epoch without images.
        curve: one number per epoch under each name of `CURVES` that the run has.
        seconds: training time of all processes, without rating.
        images_per_s: training speed, without rating.
        commits: of the code that trained it; several if other code resumed the run.
    """

    network: Network
    best_state: dict[str, Tensor]
    curve: dict[str, list[float]]
    seconds: float
    images_per_s: float
    commits: list[str]


class Run:
    """A training run that can be saved after any epoch and resumed.

    Args:
        network: on the data's device; trained in place.
        recipe: resolved for its profile.
        data: see `TrainingData`.
        seed: of all random numbers.
        hooks: of the recipe's changes, see `hooks.Hook`.
        teacher: network whose logits are learned from.
        inputs: name -> sha256 of the files that decide the run.
        planned: content of a file (`storage.networks.pack`) with the network before its training,
            which every state keeps; None if it is made again from saved files to the last bit.

    Raises:
        InputError: fewer training images than one batch.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        data: TrainingData,
        seed: int,
        hooks: Sequence[Hook] = (),
        teacher: nn.Module | None = None,
        inputs: Mapping[str, str] | None = None,
        planned: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe, self.data, self.seed = recipe, data, seed
        self.inputs, self.planned = dict(inputs or {}), planned
        train = recipe.train
        self.steps = len(data.train) // train.batch_size
        if not self.steps:
            raise InputError(
                f"{len(data.train)} training images do not fill one batch of {train.batch_size}"
            )
        self.device = data.train.images.device
        self.network = network.to(memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = train.dropout
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = train.bn_momentum
        self.on_device = torch.Generator(self.device).manual_seed(seed)
        self.step = Step(self.network, recipe, self.on_device, hooks, teacher)
        self.step.hooks.append(MomentumRestart(self.step.optimizer, train.epochs // train.cycles))
        if recipe.drop_block.at:
            num_steps = self.steps * train.epochs
            self.step.hooks.append(DropBlock(self.network, recipe.drop_block, num_steps))
        self.rated: Network = self.network
        if train.ema_decay:
            average = WeightAverage(self.network, train.ema_decay)
            self.step.hooks.append(average)
            self.rated = average.network
        self.take_step = fastest_step(self.step, self.steps * train.epochs)
        self.ratings: dict[str, Callable[[], float]] = {
            name: fastest_top1(self.rated, images)
            for name, images in (("validation_top1", data.validation), ("test_top1", data.test))
            if images is not None and (name != "test_top1" or train.watch_test)
        }
        if teacher is not None and data.validation is not None:
            self.ratings["validation_divergence"] = Divergence(
                self.rated, teacher, data.validation, data.policies, recipe.augment
            )
        self._ahead: dict[int, Decisions] = {}
        self.epoch = 0
        self.seconds = 0.0
        self.commits = [COMMIT]
        self.curve: dict[str, list[float]] = {
            name: [] for name in CURVES if name not in RATED or name in self.ratings
        }
        self.best_state: dict[str, Tensor] = {}

    def run_epoch(self, bar: TrainingBar | None = None) -> None:
        """Train one epoch and rate the network.

        Raises:
            DivergedError: the loss, a weight or a logit became NaN or infinite. Do not use the run
                again.
        """
        start = time.perf_counter()
        with _seeded(self.seed, self.epoch, self.on_device):
            self._train_epoch(bar, self.steps)
        losses = {
            "train_loss": self.step.loss.item() / self.steps,
            "srip_penalty": self.step.penalty.item() / self.steps,
        }
        self.seconds += time.perf_counter() - start
        if not all(map(math.isfinite, losses.values())):
            raise DivergedError(
                f"the loss became {losses['train_loss']:.6g}, the SRIP penalty in it "
                f"{losses['srip_penalty']:.6g}, in epoch {self.epoch + 1}",
                "loss",
                self.epoch + 1,
            )
        if not _finite(self.rated.state_dict()):
            raise DivergedError(
                f"weights became NaN or infinite in the last step of epoch {self.epoch + 1}",
                "weights",
                self.epoch + 1,
            )
        self.epoch += 1
        losses["lr"] = self._lr(self.epoch - 1, self.steps - 1)
        try:
            losses |= {name: rate() for name, rate in self.ratings.items()}
        except NotFiniteError as error:
            raise DivergedError(
                f"the logits became NaN or infinite in epoch {self.epoch}", "logits", self.epoch
            ) from error
        for name, values in self.curve.items():
            values.append(losses[name])
        nearness = [-value for value in self.curve.get("validation_divergence", ())]
        goodness = nearness or self.curve.get("validation_top1", [0.0])
        if goodness[-1] >= max(goodness):
            self.best_state = _copy(self.rated.state_dict())
        if bar is not None:
            bar.rated(losses["train_loss"], losses.get("validation_top1"))

    def run_steps(self, num_steps: int) -> None:
        """Train the first steps of a fresh run, the last epoch perhaps in part, and rate nothing.

        The weights are those of a whole run after these steps. Do not use the run again.
        """
        while num_steps > 0:
            with _seeded(self.seed, self.epoch, self.on_device):
                self._train_epoch(None, min(num_steps, self.steps))
            num_steps -= self.steps
            self.epoch += 1

    def _train_epoch(self, bar: TrainingBar | None, num_steps: int) -> None:
        """Train an epoch, or its first steps as they are in the whole epoch."""
        train = self.data.train
        self.network.train()
        self.step.loss.zero_()
        self.step.penalty.zero_()
        for hook in self.step.hooks:
            hook.start_epoch(self.epoch)
        decided = self._ahead.pop(self.epoch, None) or self._decide(self.epoch)
        order, draws = decided.order.to(self.device), decided.draws.to(self.device)
        images = augment(train.images[order], draws)
        targets = train.targets[order]
        taught = None if self.data.taught is None else self.data.taught[order]
        mixes = _each(decided.mixes, self.steps, self.device)
        loaded = len(order) // self.steps
        for number in range(num_steps):
            part = slice(number * loaded, (number + 1) * loaded)
            lr = self._lr(self.epoch, number)
            self.take_step(
                images[part],
                targets[part],
                mixes[number],
                lr,
                self.on_device,
                None if taught is None else taught[part],
            )
            if bar is not None:
                bar.stepped(self.epoch, number + 1, self.step.loss)
        if self.device.type == "cuda" and self.epoch + 1 < self.recipe.train.epochs:
            # The GPU still has the queued steps to do, so the next decisions cost no time.
            self._ahead[self.epoch + 1] = self._decide(self.epoch + 1)

    def _decide(self, epoch: int) -> Decisions:
        """Draw the decisions of an epoch. They depend on the seed and the epoch's number only."""
        generator = torch.Generator().manual_seed(_seeds(self.seed, epoch)[0])
        config, order = self.recipe.augment, self._order(generator)
        draws = draw(self.data.policies, len(order), generator, crop=config.crop, flip=config.flip)
        return Decisions(order, draws, self._mixes(generator))

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the images of an epoch in the order of its batches.

        Where two batches are mixed to one, each has an order of its own. So an epoch has as many
        steps as without, and uses every image twice.
        """
        batch, num = self.recipe.train.batch_size, len(self.data.train)
        orders = [
            torch.randperm(num, generator=generator)[: self.steps * batch].view(-1, batch)
            for _ in range(images_per_mix(self.recipe.augment.mix))
        ]
        return torch.cat(orders, 1).flatten()

    def _mixes(self, generator: torch.Generator) -> MixDraw | None:
        """Return how the batches of an epoch are mixed."""
        train, config = self.recipe.train, self.recipe.augment
        if config.mix == "none":
            return None
        drawn = [
            draw_mix(
                config.mix,
                train.batch_size,
                generator,
                alpha=config.mix_alpha,
                prob=config.mix_prob,
            )
            for _ in range(self.steps)
        ]
        columns = zip(*drawn, strict=True)
        lam, box, permutation, own = (None if c[0] is None else torch.stack(c) for c in columns)
        assert lam is not None
        assert permutation is not None
        return MixDraw(lam, box, permutation, own)

    def _lr(self, epoch: int, step: int) -> float:
        config = self.recipe.train
        return learning_rate(config, (epoch * self.steps + step) / (config.epochs * self.steps))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next epoch and the record depend on."""
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "curve": self.curve,
            "best_state": self.best_state,
            "commits": self.commits,
            "inputs": self.inputs,
            "planned": self.planned,
            "network": self.network.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "hooks": [dict(hook.state_dict()) for hook in self.step.hooks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state of the same recipe, data and seed.

        Raises:
            InputError: a file that decides the run is not the one that it began with.
        """
        for name, digest in state.get("inputs", {}).items():
            if self.inputs.get(name) != digest:
                raise InputError(
                    f"{name} is another file than when this training began: put the old one back, "
                    "or delete the training state to begin anew"
                )
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.curve = state["curve"]
        self.commits = list(dict.fromkeys([*state["commits"], COMMIT]))
        best = state["best_state"]  # read on the CPU
        self.best_state = {name: value.to(self.device) for name, value in best.items()}
        self.network.load_state_dict(state["network"])
        self.step.optimizer.load_state_dict(state["optimizer"])
        for hook, own in zip(self.step.hooks, state["hooks"], strict=True):
            hook.load_state_dict(own)


def train(
    run: Run, folder: Path | None, key: str, name: str = "training", progress: bool = True
) -> Trained:
    """Train a run to its end, from the newest intact state in the folder.

    Each epoch appends a line to the folder's `curve.csv`.

    Args:
        run: fresh, and the state is loaded into it; or with its state loaded already.
        folder: of the training states; None saves none.
        key: recipe and seed; states with another key are ignored.
        name: label of the progress bar, such as `stages/3.0-orn`.
        progress: show a bar on stderr.

    Raises:
        DivergedError: a loss, a weight or a logit became NaN or infinite. The last good state stays
            in the folder.
        InputError: the folder cannot be written.
    """
    state = load_state(folder, key) if folder and not run.epoch else None
    if state is not None:
        run.load_state_dict(state)
    epochs = run.recipe.train.epochs
    images = run.steps * run.recipe.train.batch_size
    saved = time.monotonic()
    if folder:
        begin_curve(folder, name, run.curve)
    with TrainingBar(name, epochs, images, run.steps, run.epoch, progress) as bar:
        while run.epoch < epochs:
            run.run_epoch(bar)
            if folder:
                append_epoch(folder, run.curve)
            due = time.monotonic() - saved >= SAVE_EVERY_S or run.epoch == epochs
            if folder and due:
                save_state(folder, key, run.state_dict())
                saved = time.monotonic()
    for hook in run.step.hooks:
        hook.finish()
    per_s = images * epochs / run.seconds if run.seconds else 0.0
    return Trained(run.rated.eval(), run.best_state, run.curve, run.seconds, per_s, run.commits)


@contextmanager
def _seeded(seed: int, epoch: int, on_device: torch.Generator) -> Iterator[None]:
    """Reseed the device generator, and PyTorch's own, from which dropout draws, for an epoch.

    So a resumed epoch draws the same numbers. PyTorch's own generators are restored afterwards.
    """
    _, for_device, for_pytorch = _seeds(seed, epoch)
    devices = [on_device.device] if on_device.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(for_pytorch)
        on_device.manual_seed(for_device)
        yield


def _seeds(seed: int, epoch: int) -> list[int]:
    """Return the seeds of an epoch: of its decisions, of the device, of PyTorch's generators."""
    source = torch.Generator().manual_seed(seed)
    seeds: list[int] = torch.randint(2**62, (epoch + 1, 3), generator=source)[-1].tolist()
    return seeds


def _each(mixes: MixDraw | None, num: int, device: torch.device) -> list[MixDraw | None]:
    """Return the mixing of each batch, copied to the device at once."""
    if mixes is None:
        return [None] * num
    columns = ([None] * num if c is None else c.to(device) for c in mixes)
    return [MixDraw(*parts) for parts in zip(*columns, strict=True)]


def _finite(state: Mapping[str, Tensor]) -> bool:
    return bool(torch.stack([torch.isfinite(value).all() for value in state.values()]).all())


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
