"""Distillation [hinton2015]: train on a teacher's logits besides the labels.

    loss = (1 - weight) * loss(labels) + weight * T^2 * KL(softmax(t / T) || softmax(s / T))

`s` and `t` are the logits of student and teacher for the same inputs, mixed images included. The
factor `T^2` keeps the size of the gradient when the temperature changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.errors import InputError


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of the teacher's loss term. Ignored without a teacher.

    Attributes:
        weight: share of the teacher's term, in [0, 1].
        temperature: T. Above 1, the teacher's ranking of the wrong classes counts more.
        offline: the teacher answers once, for the images without augmentation, and its predictions
            are mixed as the images are [lee2020assembled].

    Raises:
        InputError: a number outside its range.
    """

    weight: float = 1.0
    temperature: float = 1.0
    offline: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"distillation.weight is {self.weight}; give a fraction in [0, 1]")
        if not 0 < self.temperature < math.inf:
            raise InputError(
                f"distillation.temperature is {self.temperature}; give a finite number above 0"
            )


class Committee(nn.Module):
    """Several teachers as one: the mean of their predictions.

    Args:
        teachers: networks of the same classes.
    """

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, `[N, C]`, which serve as logits."""
        return mean_prediction([teacher(x) for teacher in self.teachers])


def mean_prediction(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithms of the mean probabilities of several logits, each `[N, C]`."""
    found = torch.stack([each.log_softmax(1) for each in logits])
    return found.logsumexp(0) - math.log(len(logits))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the teacher's term, `T^2 * KL(teacher || student)`, mean over N, in nats.

    Args:
        logits: of the student, `[N, C]`. Half precision is raised to float32.
        teacher_logits: `[N, C]`. No gradient flows into them.
        temperature: T.

    Raises:
        InputError: the logits are not two matrices of the same shape.
    """
    if logits.ndim != 2 or logits.shape != teacher_logits.shape:
        raise InputError(
            f"logits are {list(logits.shape)}, the teacher's {list(teacher_logits.shape)}; "
            "expected two [N, C]"
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    student = F.log_softmax(logits.to(dtype) / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
