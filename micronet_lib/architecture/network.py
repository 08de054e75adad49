"""The contract between a network and the lab, and the registry that builds networks by name.

A `Network` has a `spec`, from which it can be built again, and a `classifier`. The lab depends on
nothing else. To use a network of another library, register a function that returns it in `Wrapped`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from micronet_lib.errors import InputError, Registry, check_choice


@dataclass(frozen=True)
class NetworkSpec:
    """The data from which a network is built, before its weights are loaded.

    Attributes:
        name: registered with `register`.
        options: arguments of the registered function, as plain JSON: lists, not tuples.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Network(nn.Module):
    """The contract. Inputs are `[N, C, H, W]` floats, outputs `[N, num_classes]` logits.

    Attributes:
        spec: how to build the network again; `build` sets it where the network does not.
        foldable: whether batch norm may be merged into convolutions for inference. Set it to False
            if the layers must stay as they are, for example because they are quantised.
        capturable: whether a CUDA graph can hold its forward pass. Set it to False if a pass waits
            for the device, as reading one number of a tensor does.
    """

    spec: NetworkSpec
    foldable: bool = True
    capturable: bool = True

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer; its weight has one row for each class."""
        raise TypeError(f"{type(self).__name__} has no classifier: define the property")

    def counted(self) -> nn.Module:
        """Return the network whose operations are charged; by default this one.

        A network that simulates narrow numbers with many operations returns one with the operations
        that it stands for, and their widths.
        """
        return self

    @property
    def parts(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Functions that give the network when they run one after the other, by name, in order.

        Empty if the network is no such chain. Then nothing can be attached between its blocks.
        """
        return {}

    def exits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every exit, the last exit at the end; by default one."""
        return [self(x)]


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while. Then each of its parts has its own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class Wrapped(Network):
    """A network of another library, any module from images to logits.

    `classifier` is the dotted name of its last linear layer, such as `fc`.

    Raises:
        InputError: there is no linear layer of that name.
    """

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__()
        self.network = network
        found = dict(network.named_modules()).get(classifier)
        if not isinstance(found, nn.Linear):
            raise InputError(f"{type(network).__name__} has no linear layer {classifier!r}")
        self._classifier_name = classifier

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer; its weight has one row for each class."""
        found = self.network.get_submodule(self._classifier_name)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def parts(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The children of an `nn.Sequential`; empty for any other module."""
        # Not `named_children`, which leaves out a module that occurs a second time.
        return dict(self.network._modules) if type(self.network) is nn.Sequential else {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.network(x)


Builder = Callable[..., Network]

NETWORKS: Registry[Builder] = Registry("model")
"""Every registered network: name -> function of its options."""


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a function that builds a network under a name for recipes and files.

    Raises:
        InputError: the name is taken.
    """

    def add(builder: Builder) -> Builder:
        if name in NETWORKS:
            raise InputError(f"a network {name!r} is registered already")
        NETWORKS[name] = builder
        return builder

    return add


def takes(name: str, option: str) -> bool:
    """Return whether a registered function names an option; `**options` names none.

    Raises:
        InputError: unknown name.
    """
    return option in signature(NETWORKS[name]).parameters


def build(model: str | NetworkSpec, /, **options: Any) -> Network:
    """Build a freshly initialised network from a name of `NETWORKS` or a spec.

    Options are those of the registered function; they override those of the spec.

    Raises:
        InputError: unknown name, or an option that the network does not have.
    """
    spec = NetworkSpec(model) if isinstance(model, str) else model
    spec = NetworkSpec(spec.name, {**spec.options, **options})
    builder = NETWORKS[spec.name]
    known = signature(builder).parameters
    if not any(each.kind is Parameter.VAR_KEYWORD for each in known.values()):
        for name in spec.options:
            check_choice(f"option of {spec.name}", name, known)
    try:
        network = builder(**spec.options)
    except TypeError as error:
        raise InputError(f"options of {spec.name}: {error}") from error
    if not hasattr(network, "spec"):  # a MicroNet writes its own, in its shortest form
        network.spec = spec
    return network
