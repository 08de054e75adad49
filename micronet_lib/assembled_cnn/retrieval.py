"""Retrieval as in Assembled CNN [lee2020assembled, section 4.4]: GeM, ArcFace, recall at k.

A network that has learned some classes embeds images of others, and an image should have its own
class nearest. `EmbeddingNetwork` replaces the head of a network by a pooling and a classifier,
whose logits may be cosines. Chapter `10_assembled_cnn`, page `10_assembled_cnn_transfer`.

The paper's head has GeM, embeddings of 1 536 numbers, and a network without down-sampling in its
last stage (`last_stride=1` of `architecture.resnet`). What makes the 1 536 numbers is not said
there. In [assembled_code] it is a linear layer without a bias, then batch norm, and a ReLU before
the classifier; the power of GeM is fixed at 3. Here it is the linear layer alone, and the power is
learned, as in [radenovic2018].
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.network import Network, NetworkSpec, build, evaluated, register
from micronet_lib.errors import InputError, check_choice, is_integer
from micronet_lib.hooks import Hook

NAME = "embedding"
IMAGE_SHAPE = (3, 32, 32)
EPSILON = 1e-6

Pooling = Literal["average", "gem"]


class GeM(nn.Module):
    """Generalised mean over all places, with one learned power [radenovic2018].

    Power 1 is the average, a large one nearly the maximum. Values below `EPSILON` are raised to it.

    Args:
        power: at the start of the training.
    """

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C]`."""
        return x.clamp(min=EPSILON).pow(self.power).mean((2, 3)).pow(1 / self.power)


class EmbeddingNetwork(Network):
    """A network whose pooled features are embeddings; its head is replaced.

    Args:
        trunk: a network with `parts`, of which the last one pools and classifies.
        pooling: `average`, or `gem` for `GeM`.
        scale: factor of cosines between an embedding and the rows of the classifier's weight, which
            are the logits; 0 for a linear classifier.
        size: numbers of an embedding, which a linear layer makes of the pooled features; the
            classifier is then a fresh one. 0 for the pooled features themselves.

    Raises:
        InputError: a network without parts, or whose features its classifier does not fit; an
            unknown pooling, a negative scale or size.
    """

    def __init__(
        self, trunk: Network, pooling: Pooling = "average", scale: float = 0.0, size: int = 0
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        if not 0 <= scale < math.inf:
            raise InputError(f"the scale of cosines is {scale}; give a finite number from 0")
        if not is_integer(size, 0):
            raise InputError(f"the size of embeddings is {size!r}; give a whole number from 0")
        if len(trunk.parts) < 2:
            raise InputError(f"{trunk.spec.name} has no blocks whose features could be pooled")
        plain = {"name": trunk.spec.name, "options": dict(trunk.spec.options)}
        options = {"trunk": plain, "pooling": pooling, "scale": scale}
        self.spec = NetworkSpec(NAME, {**options, "size": size} if size else options)
        self.trunk, self.scale = trunk, scale
        self.foldable, self.capturable = trunk.foldable, trunk.capturable
        self.gem = GeM().train(trunk.training) if pooling == "gem" else None
        self.dropout = nn.Dropout(0.0).train(trunk.training)  # a training sets it
        like = self.classifier.weight
        self.to(like)
        self.training = trunk.training
        with torch.no_grad(), evaluated(self):
            shape = self.features(like.new_zeros(1, *IMAGE_SHAPE)).shape
        if len(shape) != 4 or shape[1] != self.classifier.in_features:
            raise InputError(
                f"{trunk.spec.name} returns {list(shape)} before its last part; the classifier "
                f"reads {self.classifier.in_features} pooled features"
            )
        self.project: nn.Linear | None = None
        if size:
            self.project = nn.Linear(shape[1], size, bias=False).to(like)
            classes = self.classifier.out_features
            owner = next(n for n, m in trunk.named_modules() if m is trunk.classifier)
            trunk.set_submodule(owner, nn.Linear(size, classes).to(like))
        if scale:
            self.classifier.register_parameter("bias", None)

    @property
    def classifier(self) -> nn.Linear:
        """The trunk's; without a bias if the logits are cosines."""
        return self.trunk.classifier

    def features(self, x: Tensor) -> Tensor:
        """Return what is pooled, `[N, C, H, W]`."""
        for part in list(self.trunk.parts.values())[:-1]:
            x = part(x)
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings, `[N, C]`, of any length."""
        features = self.features(x)
        pooled = features.mean((2, 3)) if self.gem is None else self.gem(features)
        return pooled if self.project is None else self.project(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `[N, num_classes]`."""
        embedding = self.dropout(self.embed(x))
        if not self.scale:
            return self.classifier(embedding)
        return self.scale * F.linear(unit(embedding), unit(self.classifier.weight))


@register(NAME)
def _build(
    trunk: Mapping[str, Any], pooling: Pooling = "average", scale: float = 0.0, size: int = 0
) -> EmbeddingNetwork:
    return EmbeddingNetwork(build(NetworkSpec(**trunk)), pooling, scale, size)


class Embeddings(nn.Module):
    """A network that answers with its embeddings, so that it can be folded and run like others."""

    def __init__(self, network: EmbeddingNetwork) -> None:
        super().__init__()
        self.network = network
        self.foldable = network.foldable

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings, `[N, C]`."""
        return self.network.embed(x)


@dataclass(frozen=True)
class Embed:
    """The change of a recipe that makes a network an `EmbeddingNetwork`.

    Attributes:
        pooling: of the features.
        scale: of cosines; 0 for a linear classifier.
        size: numbers of an embedding; 0 for as many as the network has channels. The paper has
            1 536.
    """

    pooling: Pooling = "average"
    scale: float = 0.0
    size: int = 0
    num_images: ClassVar[int] = 0

    def apply(self, network: Network, images: Tensor | None = None) -> EmbeddingNetwork:
        """Return the network with the new head.

        The classifier's weight is the network's, unless embeddings have a size of their own.

        Raises:
            InputError: as `EmbeddingNetwork`.
        """
        return EmbeddingNetwork(network, **asdict(self))

    def hooks(self, network: Network) -> list[Hook]:
        """Return no hook."""
        return []


def unit(x: Tensor) -> Tensor:
    """Return rows `[N, C]` at length 1; a row of zeros stays."""
    # Written out, so that the operations can be counted.
    return x * (x * x).sum(1, keepdim=True).clamp_min(EPSILON**2).rsqrt()


# --------------------------------------------------------------------------------------- the loss


@dataclass(frozen=True)
class ArcFaceConfig:
    """Settings of the angular margin in a training.

    Attributes:
        margin: angle in radians that is added to that of the true class; 0 for none. The paper has
            0.3.

    Raises:
        InputError: a margin outside its range.
    """

    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.pi / 2:
            raise InputError(
                f"arcface.margin is {self.margin}; give an angle from 0, below a right angle (1.57)"
            )


def arcface_logits(logits: Tensor, targets: Tensor, scale: float, margin: float) -> Tensor:
    """Return logits with the angle of the true class enlarged by a margin [deng2019].

    The loss is then the usual cross-entropy. Where the enlarged angle would pass 180 degrees, the
    logit falls by `margin * sin(margin)` instead, as in the authors' code, so that it always falls.

    Args:
        logits: scaled cosines, `[N, C]`. Half precision is raised to float32.
        targets: true classes, `[N]`.
        scale: of the cosines.
        margin: in radians.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = (logits.gather(1, targets[:, None]) / scale).clamp(-1 + EPSILON, 1 - EPSILON)
    angle = own.acos() + margin
    moved = torch.where(angle < math.pi, angle.cos(), own - margin * math.sin(margin))
    return logits.scatter(1, targets[:, None], scale * moved)


# -------------------------------------------------------------------------------------- the rating


def nearest(embeddings: Tensor, k: int) -> Tensor:
    """Return the k other images nearest to each by cosine, nearest first, `[N, k]`.

    Args:
        embeddings: `[N, C]`.
        k: from 1 to N - 1.

    Raises:
        InputError: k outside its range, or embeddings that are NaN or infinite.
    """
    if not 1 <= k < len(embeddings):
        raise InputError(f"k is {k}; of {len(embeddings)} images give 1 to {len(embeddings) - 1}")
    finite = embeddings.isfinite().all(1)
    if not finite.all():
        lost = len(finite) - int(finite.sum())
        raise InputError(f"embeddings of {lost} of {len(finite)} images are NaN or infinite")
    rows = unit(embeddings.double())
    found = []
    for part in torch.arange(len(rows), device=rows.device).split(1000):
        alike = rows[part] @ rows.T
        alike[torch.arange(len(part)), part] = -torch.inf
        found.append(alike.topk(k).indices)
    return torch.cat(found)


def recall_at_k(embeddings: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the fraction of images with one of their own class among the k nearest others.

    Every image is a query, and all others are searched, as in the zero-shot protocol [song2016].

    Args:
        embeddings: `[N, C]`.
        labels: class of every image, `[N]`.
        k: from 1 to N - 1.

    Raises:
        InputError: k outside its range; embeddings that are NaN or infinite; another number of
            labels; or a class with a single image, which has nothing to find.
    """
    if labels.shape != embeddings.shape[:1]:
        raise InputError(
            f"labels are {list(labels.shape)}, but embeddings are {list(embeddings.shape)}: give "
            "one label for each image"
        )
    classes, counts = labels.unique(return_counts=True)
    if (counts < 2).any():
        raise InputError(
            f"class {classes[counts < 2][0].item()} has one image: nothing is there to be found"
        )
    hits = labels[nearest(embeddings, k)] == labels[:, None]
    return hits.any(1).double().mean().item()
