"""A training step as such code is usually written: what ours is timed against.

Eager NCHW tensors, HardSwish in four operations, two losses with targets written image by image,
SRIP as a loop over Gram matrices through autograd, one optimiser loop over parameters.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.micronet import HardSwish, MicroNet
from micronet_lib.augmentation.mixing import MixDraw
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.srip.penalty import srip_weights


class PlainHardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3) / 6


def plain(model: MicroNet) -> MicroNet:
    """The same weights with HardSwish spelled out."""
    twin = MicroNet(model.architecture).to(next(model.parameters()))
    twin.load_state_dict(model.state_dict())
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, HardSwish):
                setattr(module, name, PlainHardSwish())
    return twin.eval()


def distribution_by_pairs(weight: Tensor) -> Tensor:
    u = weight.new_zeros(len(weight), len(weight))
    for y in range(len(weight)):
        for k in range(len(weight)):
            u[y, k] = F.cosine_similarity(weight[k], weight[y], dim=0).abs().exp()
        u[y, y] = 0
        u[y] /= u[y].sum()
    return u


def loss_by_images(logits: Tensor, u: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    soft = torch.zeros_like(logits)
    for i in range(len(targets)):
        soft[i] = smoothing * u[targets[i]]
    soft.scatter_(1, targets.unsqueeze(1), 1 - smoothing)
    return (-soft * logits.log_softmax(1)).sum(1).mean()


def gram_loop(weights: Mapping[str, Tensor], coef: float, us: Mapping[str, Tensor]) -> Tensor:
    """The released definition, layer by layer."""
    total = next(iter(weights.values())).new_zeros(())
    for name, weight in weights.items():
        w = weight.flatten(1)
        a = w.T @ w - torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
        v = F.normalize(a.T @ us[name], dim=0)
        u = F.normalize(a @ v, dim=0)
        total = total + (u @ (a @ v)) ** 2
    return coef * total / len(weights)


class PlainStep:
    """One step of a recipe with the released code's forms of SRIP and label smoothing."""

    def __init__(self, model: MicroNet, recipe: Recipe) -> None:
        self.model = plain(model).train()
        self.recipe = recipe
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        spared = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.train.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=recipe.train.lr, momentum=0.9, nesterov=True, foreach=False
        )
        self.u = distribution_by_pairs(self.model.classifier.weight.detach())

    def __call__(
        self, images: Tensor, targets: Tensor, draw: MixDraw, starts: Mapping[str, Tensor]
    ) -> Tensor:
        """Normalised images `[N, 3, 32, 32]`, with a CutMix box; returns the loss without SRIP."""
        left, top, right, bottom = draw.box.tolist()
        images = images.clone()
        images[:, :, top:bottom, left:right] = images[draw.permutation, :, top:bottom, left:right]
        logits = self.model(images)
        lam, smoothing = draw.lam.item(), self.recipe.smoothing.smoothing
        first = loss_by_images(logits, self.u, targets, smoothing)
        second = loss_by_images(logits, self.u, targets[draw.permutation], smoothing)
        loss = lam * first + (1 - lam) * second
        weights = srip_weights(self.model, self.recipe.srip.placement)
        penalty = gram_loop(weights, self.recipe.srip.coef, starts)
        self.optimizer.zero_grad()
        (loss + penalty).backward()
        self.optimizer.step()
        return loss.detach()
