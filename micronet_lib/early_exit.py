"""Early exit: images that a small head is sure of leave the network before its end.

[osi_code] attaches a head to a block of a trained network: depthwise 3x3, pointwise, average
pooling, classifier. An image whose largest probability there is above a threshold gets the head's
answer, and the rest of the network is not run for it. The challenge charges the mean number of
operations over the images, so every image that leaves lowers the score; the head's weights raise
it. Chapter `07_early_exit`.

It departs from [osi_code] in four points: HardSwish in the head instead of Swish, plain batch norm
instead of one for each part of a batch ("ghost"), a frozen trunk keeps its batch-norm averages too,
and the threshold is chosen on held-out images.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.micronet import HardSwish
from micronet_lib.architecture.network import Network, NetworkSpec, build, evaluated, register
from micronet_lib.errors import InputError, check_choice, is_integer, is_number
from micronet_lib.hooks import Hook
from micronet_lib.scoring.bill import Score, score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RuleSet, rules_of

NAME = "early_exit"
IMAGE_SHAPE = (3, 32, 32)
STEPS = 60  # of the search for a temperature, each halves the interval
MOST_SHARPENED = 100.0  # temperatures lie between 1 / 100 and 100

# ------------------------------------------------------------------------------------ the network


class ExitHead(nn.Module):
    """Depthwise 3x3, pointwise, average pooling, classifier [osi_code].

    Args:
        in_chs: channels of the block that it follows.
        hidden_chs: channels that are pooled.
        num_classes: of the answer.
        stride: of the depthwise convolution; 2 makes the pointwise one four times cheaper.
    """

    def __init__(self, in_chs: int, hidden_chs: int, num_classes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.bn_dw = nn.BatchNorm2d(in_chs)
        self.act_dw = HardSwish()
        self.conv_expand = nn.Conv2d(in_chs, hidden_chs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(hidden_chs)
        self.act_expand = HardSwish()
        self.classifier = nn.Linear(hidden_chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, num_classes]` logits."""
        out = self.act_dw(self.bn_dw(self.conv_dw(x)))
        out = self.act_expand(self.bn_expand(self.conv_expand(out)))
        return self.classifier(F.adaptive_avg_pool2d(out, 1).flatten(1))


class ExitNetwork(Network):
    """A network, the trunk, with an exit head after one of its parts.

    As a module it answers with the trunk's logits, so that it can be rated like the trunk. `exits`
    returns both answers, `leave_early` decides between them.

    Args:
        trunk: any network with `parts`.
        after: name of the part that the head follows, such as `blocks.4`.
        hidden_chs: see `ExitHead`.
        stride: see `ExitHead`.

    Raises:
        InputError: a network without parts, an unknown part, its last one, or one whose output is
            no image of features; a number out of range.
    """

    def __init__(self, trunk: Network, after: str, hidden_chs: int = 136, stride: int = 1) -> None:
        super().__init__()
        names = list(trunk.parts)
        if len(names) < 2:
            raise InputError(f"{trunk.spec.name} has no blocks that an exit could follow")
        check_choice(f"block of {trunk.spec.name} to exit after", after, names[:-1])
        _check_head(hidden_chs, stride)
        plain = {"name": trunk.spec.name, "options": dict(trunk.spec.options)}
        options = {"trunk": plain, "after": after, "hidden_chs": hidden_chs, "stride": stride}
        self.spec = NetworkSpec(NAME, options)
        self.trunk, self.after = trunk, after
        self.foldable, self.capturable = trunk.foldable, trunk.capturable
        like = trunk.classifier.weight
        features = self._shape_after(like)
        if len(features) != 4:
            raise InputError(
                f"{after} returns {list(features)}; an exit head reads [N, C, H, W] features"
            )
        head = ExitHead(features[1], hidden_chs, trunk.classifier.out_features, stride)
        self.exit_head = head.to(like.device, like.dtype).train(trunk.training)

    @torch.no_grad()
    def _shape_after(self, like: Tensor) -> torch.Size:
        self.training = self.trunk.training
        with evaluated(self):
            return self.features(like.new_zeros(1, *IMAGE_SHAPE)).shape

    @property
    def classifier(self) -> nn.Linear:
        """The trunk's."""
        return self.trunk.classifier

    def features(self, x: Tensor) -> Tensor:
        """Return what the exit head reads, `[N, C, H, W]`."""
        for name, part in self.trunk.parts.items():
            x = part(x)
            if name == self.after:
                break
        return x

    def rest(self, features: Tensor) -> Tensor:
        """Return the last exit's logits from the features, `[N, num_classes]`."""
        parts = self.trunk.parts
        names = list(parts)
        for name in names[names.index(self.after) + 1 :]:
            features = parts[name](features)
        return features

    def early(self, x: Tensor) -> Tensor:
        """Return the early exit's logits, `[N, num_classes]`, and run nothing else."""
        return self.exit_head(self.features(x))

    def exits(self, x: Tensor) -> list[Tensor]:
        """Return the early exit's logits and the last exit's."""
        features = self.features(x)
        return [self.exit_head(features), self.rest(features)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the last exit's logits."""
        return self.rest(self.features(x))

    def counted(self) -> nn.Module:
        """Return the network with the trunk that is charged; the head has its own widths."""
        trunk = self.trunk.counted()
        if trunk is self.trunk:
            return self
        charged = copy.copy(self)
        charged._modules = {**self._modules, "trunk": trunk}
        return charged


@register(NAME)
def _build(trunk: Mapping[str, Any], **options: Any) -> ExitNetwork:
    return ExitNetwork(build(NetworkSpec(**trunk)), **options)


def _check_head(hidden_chs: Any, stride: Any) -> None:
    for name, value in (("hidden_chs", hidden_chs), ("stride", stride)):
        if not is_integer(value, 1):
            raise InputError(f"{name} of an exit head is {value!r}; give a whole number, 1 or more")


class Front(nn.Module):
    """The part of a network that its exit head reads."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network
        self.foldable = network.foldable

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, `[N, C, H, W]`."""
        return self.network.features(x)


class AllExits(nn.Module):
    """A network that returns the logits of all its exits, `[N, exits, num_classes]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.foldable = network.foldable

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, the last exit's at the end."""
        return torch.stack(self.network.exits(x), 1)


@dataclass(frozen=True)
class AddExit:
    """The change of a recipe that attaches an exit head.

    The head trains with `Recipe.exits`, and alone if `train.freeze` names the `trunk`.

    Attributes:
        after: name of the part that the head follows, such as `blocks.4`.
        hidden_chs: channels that the head pools. [osi_code] has 136.
        stride: of the head's depthwise convolution. [osi_code] has 1.

    Raises:
        InputError: a part without a name, or a number that is none from 1.
    """

    after: str = "blocks.4"
    hidden_chs: int = 136
    stride: int = 1
    num_images: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.after, str):
            raise InputError(
                f"after of an exit head is {self.after!r}; give the name of a part, such as "
                "'blocks.4'"
            )
        _check_head(self.hidden_chs, self.stride)

    def apply(self, network: Network, images: Tensor | None = None) -> ExitNetwork:
        """Return the network with its exit head, whose weights are drawn by PyTorch's generator.

        Raises:
            InputError: as `ExitNetwork`.
        """
        return ExitNetwork(network, **asdict(self))

    def hooks(self, network: Network) -> list[Hook]:
        """Return no hook."""
        return []


@torch.no_grad()
def num_exits(network: Network) -> int:
    """Return from how many exits a network can answer about an image of 32 x 32; 1 for most."""
    image = network.classifier.weight.new_zeros(1, 3, 32, 32)
    with evaluated(network):
        return len(network.exits(image))


# --------------------------------------------------------------------------------------- the loss


@dataclass(frozen=True)
class ExitLoss:
    """Settings of the early exit's term in the loss of a training.

    Attributes:
        weight: its share, in [0, 1]; the last exit has the rest. 0 trains no exit. At 1 the last
            exit is not even computed.
        confidence: weight every image by its confidence, see `exit_loss`.

    Raises:
        InputError: a weight that is no number in [0, 1].
    """

    weight: float = 0.0
    confidence: bool = True

    def __post_init__(self) -> None:
        weight = self.weight
        if not is_number(weight) or not 0 <= weight <= 1:
            raise InputError(f"exits.weight is {weight!r}; give a fraction in [0, 1]")


def exit_loss(logits: Tensor, targets: Tensor, confidence: bool = True) -> Tensor:
    """Return the exit's loss, mean over N of `(1 + max_k p_k) * cross-entropy` [osi_code].

    An image that the exit is sure of counts up to twice as much, so that a sure and wrong answer
    costs most. The gradient flows through the factor too, as in the released code.

    Args:
        logits: `[N, C]`. Half precision is raised to float32.
        targets: probabilities, `[N, C]`.
        confidence: False leaves out the factor.

    Raises:
        InputError: not two matrices of the same shape.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise InputError(
            f"logits are {list(logits.shape)}, targets {list(targets.shape)}; expected two [N, C]"
        )
    log_p = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
    losses = -(targets * log_p).sum(1)
    if confidence:
        losses = losses * (1 + log_p.amax(1).exp())
    return losses.mean()


# ------------------------------------------------------------------------- threshold, temperature


def confidence_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the largest probability of every image, `[N]`, of logits `[N, C]`.

    Raises:
        InputError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}; give a number above 0")
    return (logits / temperature).softmax(1).amax(1)


def chosen_threshold(confidence: Tensor, agrees: Tensor, most: float = 0.005) -> float:
    """Return the lowest threshold at which few held-out images leave with another answer.

    The two answers of an image are compared, early and last. So no label is needed, and the last
    exit may have learned from these images. The early exit must not have.

    Args:
        confidence: of the early exit on held-out images, `[N]`.
        agrees: whether it gives the answer of the last exit, bool `[N]`.
        most: fraction of all N images that may leave with another answer.

    Returns:
        A number in [0, 1]. Images above it leave.

    Raises:
        InputError: no images, a fraction outside [0, 1], or an `agrees` that is not bool.
    """
    if agrees.dtype != torch.bool:  # of integers, ~ is no "not"
        raise InputError(f"agrees is {agrees.dtype}; give a comparison, of torch.bool")
    if not len(confidence):
        raise InputError("no held-out images: a threshold cannot be chosen")
    if not 0 <= most <= 1:
        raise InputError(f"{most} of the images may change their answer; give a fraction in [0, 1]")
    order = confidence.argsort(descending=True)
    changed = (~agrees[order]).cumsum(0)
    leaving = int((changed <= most * len(order)).sum())
    # The image that would be one too many stays, and so does any that is as sure as it is.
    return confidence[order[leaving]].item() if leaving < len(order) else 0.0


def fitted_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature that gives held-out images the least cross-entropy [guo2017].

    The loss is convex in 1 / T, and its derivative there is the mean of `E_p[logit] - logit_y`. So
    the interval around its zero is halved again and again. The result lies in [1 / 100, 100].

    Args:
        logits: `[N, C]`.
        targets: classes, `[N]`.

    Raises:
        InputError: no images.
    """
    if not len(logits):
        raise InputError("no held-out images: a temperature cannot be fitted")
    logits = logits.double()
    own = logits.gather(1, targets[:, None])[:, 0]
    low, high = 1 / MOST_SHARPENED, MOST_SHARPENED  # of 1 / T
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        expected = ((logits * middle).softmax(1) * logits).sum(1)
        if (expected - own).mean() < 0:
            low = middle
        else:
            high = middle
    return 1 / (low * high) ** 0.5


# -------------------------------------------------------------------------------------- inference


class Outcome(NamedTuple):
    """What images leave with.

    Attributes:
        logits: of the exit that each image took, `[N, num_classes]`. Not divided by a temperature.
        left: whether it left early, bool `[N]`.
    """

    logits: Tensor
    left: Tensor


@torch.no_grad()
def leave_early(
    network: ExitNetwork, images: Tensor, threshold: float, temperature: float = 1.0
) -> Outcome:
    """Answer a batch; only images that stay go through the rest of the network.

    Args:
        network: in evaluation mode.
        images: normalised, `[N, 3, H, W]`; a single one is `[1, 3, H, W]`.
        threshold: images leave if their confidence is above it, in [0, 1]. At 1 nobody leaves.
        temperature: of the confidence.

    Raises:
        InputError: a threshold outside [0, 1], a temperature that is not above 0, or a network
            without an early exit or in training mode.
    """
    if not isinstance(network, ExitNetwork):
        raise InputError(f"{type(network).__name__} has no early exit: attach one by AddExit")
    if network.training:  # batch norm would mix the images, and only some reach the rest
        raise InputError("the network is in training mode: call its eval() before images leave")
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold}; give a probability in [0, 1]")
    features = network.features(images)
    logits = network.exit_head(features)
    left = confidence_of(logits, temperature) > threshold
    if not left.all():
        logits[~left] = network.rest(features[~left])
    return Outcome(logits, left)


# ----------------------------------------------------------------------------------------- counts


class Decision(nn.Module):
    """Largest probability and comparison with a threshold, as the counter sees them."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return whether each image leaves, `[N]`, of logits `[N, C]`."""
        return logits.softmax(1).amax(1) > 0.5


def expected_score(
    network: Network,
    exit_rate: float,
    rules: str | RuleSet = "official",
    decision: bool = False,
) -> Score:
    """Return the bill of a network with an early exit: operations are means over the images.

    Stem, blocks up to the exit and the head run for every image, the rest for those that stay.
    Storage is charged in full.

    Args:
        network: with two exits.
        exit_rate: measured fraction of images that leave early.
        rules: a rule set or its name.
        decision: charge softmax, largest entry and comparison too. [osi_code] does not, and neither
            does anyone else on the board. The authors' counter has no price for them.

    Raises:
        InputError: a rate outside [0, 1], another number of exits, or an operation without a price.
    """
    if not 0 <= exit_rate <= 1:
        raise InputError(f"the exit rate is {exit_rate}; give a fraction in [0, 1]")
    operations = record_operations(network)
    if decision:
        operations += record_operations(Decision(), (network.classifier.out_features,))
    chosen = rules_of(rules) if isinstance(rules, str) else rules
    return score_operations(operations, chosen, [exit_rate, 1 - exit_rate])
