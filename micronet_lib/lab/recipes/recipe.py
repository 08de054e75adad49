"""Recipes: a `Recipe` is a step from one network to the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from micronet_lib.assembled_cnn.drop_block import DropBlockConfig
from micronet_lib.assembled_cnn.retrieval import ArcFaceConfig
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.distillation import DistillationConfig
from micronet_lib.early_exit import ExitLoss
from micronet_lib.errors import InputError, check_choice
from micronet_lib.hooks import Change
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.schedules import PruneConfig
from micronet_lib.srip.penalty import SripConfig


@dataclass(frozen=True)
class Price:
    """Bit widths for the official rules. They change the price, not the network.

    Attributes:
        weight_bits: of weights; 0 for the network as it is.
        activation_bits: of activations; 0 for the network as it is.
        accumulator: how additions inside a quantised dot product are charged.
    """

    weight_bits: int = 0
    activation_bits: int = 0
    accumulator: str = "fp32"


@dataclass(frozen=True)
class Recipe:
    """A step: the network it starts from, the changes to it, and the training of the result.

    A network starts fresh (`model`), from a published file (`checkpoint`) or from the network of
    another recipe (`start`). Then `changes` are applied, and `train` trains it. So a chain of
    stages is a chain of recipes, each with its own settings.

    Attributes:
        model: a name of `architecture.NETWORKS`, for a fresh network.
        options: of a fresh network, see `NetworkSpec`.
        width_mult: of every channel count of a fresh network.
        checkpoint: a published file, `kaist/<checkpoint>.t7` under the data folder.
        start: recipe of the network to start from.
        changes: applied before training, in this order.
        teacher: recipe of the network whose logits are learned from.
        more_teachers: further ones; the mean of all their predictions is learned from.
        distillation: weight and temperature of the teacher's loss term.
        arcface: angular margin of the true class, for a network whose logits are cosines.
        exits: weight of an early exit's loss term; 0 for a network without one.
        savings: names of `dead_channels.SAVINGS`, applied in this order.
        price: bit widths that the official rules charge for.
        train: settings of the training; 0 epochs train nothing.
        srip: orthogonality regularisation; `coef` 0 for none.
        smoothing: of the labels.
        augment: of the training images.
        drop_block: squares of late maps that are dropped in training; `at` empty for none.
        prune: rounds of pruning after the dense training, each trained as `train` says. Short for a
            chain of recipes that differ in sparsity.
    """

    model: str = "micronet_v1"
    options: Mapping[str, Any] = field(default_factory=dict)
    width_mult: float = 1.0
    checkpoint: str = ""
    start: "Recipe | None" = None
    changes: tuple[Change, ...] = ()
    teacher: "Recipe | None" = None
    more_teachers: "tuple[Recipe, ...]" = ()
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    exits: ExitLoss = field(default_factory=ExitLoss)
    savings: tuple[str, ...] = ()
    price: Price = field(default_factory=Price)
    train: TrainConfig = field(default_factory=TrainConfig)
    srip: SripConfig = field(default_factory=lambda: SripConfig(coef=0.0))
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    drop_block: DropBlockConfig = field(default_factory=DropBlockConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        if self.checkpoint and self.start is not None:
            raise InputError("a recipe starts from a checkpoint or from another recipe, not both")
        if self.prune.sparsities and (self.checkpoint or self.start is not None):
            raise InputError(
                "prune is for rounds after a dense training of the same recipe; a recipe with a "
                "start prunes by a change, PruneTo"
            )
        if self.prune.sparsities and self.changes:
            raise InputError(
                "prune and changes do not go together: let another recipe start from the last "
                "round and make the changes"
            )

    @property
    def parent(self) -> "Recipe | None":
        """The recipe of the network it starts from; None for a file or a fresh network."""
        if not self.prune.sparsities:
            return self.start
        before = self.prune.sparsities[:-1]
        rounds = replace(self.prune, sparsities=before) if before else PruneConfig()
        return replace(self, prune=rounds)

    @property
    def needs(self) -> tuple["Recipe", ...]:
        """The recipes whose networks must exist before this one is trained."""
        return (*(() if self.parent is None else (self.parent,)), *self.teachers)

    @property
    def teachers(self) -> tuple["Recipe", ...]:
        """The recipes of all teachers."""
        return (*(() if self.teacher is None else (self.teacher,)), *self.more_teachers)

    def with_others(self, change: "Callable[[Recipe], Recipe]") -> "Recipe":
        """Return the recipe with the same change made to its start and its teachers."""
        return replace(
            self,
            start=self.start and change(self.start),
            teacher=self.teacher and change(self.teacher),
            more_teachers=tuple(map(change, self.more_teachers)),
        )

    @property
    def depth(self) -> int:
        """How many trainings lie behind the network that it starts from. Each draws anew."""
        before = 0
        if self.start is not None:
            before = self.start.depth + bool(self.start.train.epochs)
        return len(self.prune.sparsities) + before

    @property
    def learns(self) -> bool:
        """Whether the network, or one that it starts from, was trained."""
        started = self.start is not None and self.start.learns
        return bool(self.train.epochs or self.checkpoint) or started


def with_overrides(config: Any, overrides: Mapping[str, Any], above: str = "") -> Any:
    """Return a copy of a (nested, frozen) configuration with dotted keys replaced.

    Args:
        config: for example a `Recipe`.
        overrides: for example `{"train.epochs": 2}`. A value has the type of its field. An integer
            is accepted for a float, a list for a tuple, a mapping of keys for a configuration. A
            key below a field that is None, such as `teacher.checkpoint`, first fills in the
            defaults. Below a tuple comes a place, from 0, such as in `changes.0.threshold`.
        above: the part of the keys before `config`, such as `start.train.`, for messages.

    All keys of a configuration are set at once, so their order does not matter to its checks.

    Raises:
        InputError: unknown key or place (the message lists the known ones), or a value of another
            type.
    """
    if not overrides:
        return config
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    values, parts = dict[str, Any](), dict[str, dict[str, Any]]()
    entries = dict[str, dict[str, Any]]()
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        check_choice(f"key of {type(config).__name__}", head, known)
        hints = _hints(type(config), head)
        nested: Any = next((hint for hint in hints if is_dataclass(hint)), None)
        below = {rest: value} if rest else value
        if nested is not None and isinstance(below, Mapping):
            parts.setdefault(head, {}).update(below)
        elif rest and any(_kind(hint) is Mapping for hint in hints):
            values[head] = {**values.get(head, known[head]), rest: value}
        elif rest and any(_kind(hint) is tuple for hint in hints):
            entries.setdefault(head, {})[rest] = value
        elif rest:
            raise InputError(f"{head!r} of {type(config).__name__} has no keys of its own")
        else:
            values[head] = _fitted(value, hints, f"{above}{key}")
            parts.pop(head, None), entries.pop(head, None)
    for head, below in entries.items():
        values[head] = _with_entries(values.get(head, known[head]), below, f"{above}{head}")
    for head, below in parts.items():
        nested = next(hint for hint in _hints(type(config), head) if is_dataclass(hint))
        old = values.get(head, known[head])
        old = nested() if old is None else old
        values[head] = with_overrides(old, below, f"{above}{head}.")
    return replace(config, **values)


def _with_entries(
    entries: tuple[Any, ...], overrides: Mapping[str, Any], name: str
) -> tuple[Any, ...]:
    """Return a tuple of configurations with keys such as `0.threshold` replaced.

    `name` is the tuple's own key, for messages.
    """
    known = {str(place): each for place, each in enumerate(entries) if is_dataclass(each)}
    found = dict[str, dict[str, Any]]()
    for key, value in overrides.items():
        place, _, rest = key.partition(".")
        if not known:
            raise InputError(f"{name} has no entry with keys, so none at {place!r}")
        check_choice(f"place in {name}", place, known)
        below = {rest: value} if rest else value
        if not isinstance(below, Mapping):
            kind = type(known[place]).__name__
            raise InputError(f"override {name}.{key}={value!r}: expected keys of {kind}")
        found.setdefault(place, {}).update(below)
    return tuple(
        with_overrides(each, found.get(str(place), {}), f"{name}.{place}.")
        for place, each in enumerate(entries)
    )


def _hints(config: type, name: str) -> tuple[Any, ...]:
    """Return the types that a field may have: the members of a union, else its one type."""
    hint = get_type_hints(config)[name]
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _kind(hint: Any) -> Any:
    """Return the class of valid values: the origin of a generic, the type of a literal."""
    origin = get_origin(hint)
    if origin is Literal:
        return type(get_args(hint)[0])
    return Mapping if origin is not None and issubclass(origin, Mapping) else origin or hint


def _fitted(value: Any, hints: tuple[Any, ...], key: str) -> Any:
    """Return the value as one of these types, or raise `InputError`."""
    if isinstance(value, list):
        value = tuple(value)
    kinds = {_kind(hint): hint for hint in hints}
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    for kind, hint in kinds.items():
        if kind is tuple and isinstance(value, tuple):
            return tuple(_fitted(entry, get_args(hint)[:1], key) for entry in value)
        if type(value) is kind or (kind is Mapping and isinstance(value, Mapping)):
            return value
        if is_dataclass(value) and isinstance(value, kind):
            return value
    words = {NoneType: "nothing", tuple: "a list in JSON"}
    names = " or ".join(words.get(kind, kind.__name__) for kind in kinds)
    raise InputError(f"override {key}={value!r}: expected {names}")
