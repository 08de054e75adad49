"""Retrieval: GeM, ArcFace and recall by hand, a library's neighbours, and the head in the lab."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_networks import seeded
from torch import nn

from micronet_lib.architecture import Wrapped, build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.tweaks import SelectiveKernel
from micronet_lib.assembled_cnn import (
    ArcFaceConfig,
    Embed,
    EmbeddingNetwork,
    Embeddings,
    GeM,
    arcface_logits,
    drop_block_places,
    nearest,
    recall_at_k,
)
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import PLAIN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.storage.networks import pack, restore
from micronet_lib.lab.training.evaluation import logits_of
from micronet_lib.lab.training.step import Step
from micronet_lib.scoring.operations import record_operations

SMALL = {"width_mult": 0.25, "num_classes": 7}


RESNET = {"blocks": [1, 1], "width_mult": 0.125, "stem": "cifar", "num_classes": 7}


def embedding(pooling="average", scale=0.0, size=0, trunk=None) -> EmbeddingNetwork:
    torch.manual_seed(0)
    trunk = trunk or build("c_efficientnet_1.0", **SMALL)
    return Embed(pooling, scale, size).apply(trunk).eval()


def images(number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, 32, 32, generator=seeded(1))


def test_gem_lies_between_the_average_and_the_maximum():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, -2.0], [0.0, 2.0]]]])
    assert GeM(1.0)(x)[0, 0].item() == pytest.approx(2.5)
    assert GeM(3.0)(x)[0, 0].item() == pytest.approx((100 / 4) ** (1 / 3))
    assert GeM(3.0)(x)[0, 1].item() == pytest.approx((8 / 4) ** (1 / 3))  # negatives count as 0
    assert GeM(50.0)(x)[0, 0].item() == pytest.approx(4, rel=0.03)
    pool = GeM()
    pool(x).sum().backward()
    assert pool.power.grad.isfinite().all()
    assert pool.power.grad != 0


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_a_margin_enlarges_the_angle_of_the_true_class_alone(scale):
    angles = torch.tensor([[0.3, 1.0, 2.0], [2.0, 0.1, 3.0]])
    found = arcface_logits(scale * angles.cos(), torch.tensor([1, 0]), scale, 0.3)
    expected = angles.clone()
    expected[0, 1] += 0.3
    expected[1, 0] += 0.3
    torch.testing.assert_close(found, scale * expected.cos())


def test_a_margin_past_180_degrees_still_lowers_the_logit():
    cosines = torch.linspace(-0.99, -0.9, 10)[:, None]
    moved = arcface_logits(cosines, torch.zeros(10, dtype=torch.int64), 1.0, 0.5)[:, 0]
    assert (moved < cosines[:, 0]).all()
    assert (moved.diff() > 0).all()
    far = cosines[0].acos() + 0.5 > math.pi
    assert far.all()
    assert moved[0].item() == pytest.approx(-0.99 - 0.5 * math.sin(0.5))


def test_recall_by_hand():
    """Angles 0, 10, 30 and 90, 100 degrees: the third image is nearest to another class."""
    angles = torch.deg2rad(torch.tensor([0.0, 10, 30, 90, 100]))
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1.0, 6)[:, None]
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert nearest(rows, 1)[:, 0].tolist() == [1, 0, 1, 4, 3]
    assert recall_at_k(rows, labels, 1) == pytest.approx(4 / 5)
    assert recall_at_k(rows, labels, 2) == pytest.approx(4 / 5)
    assert recall_at_k(rows, labels, 3) == 1


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_recall_is_that_of_a_librarys_neighbours(k):
    from sklearn.neighbors import NearestNeighbors

    rows = torch.randn(120, 6, generator=seeded(2))
    labels = torch.arange(120) % 10
    index = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(rows.numpy())
    found = torch.from_numpy(index.kneighbors(rows.numpy(), return_distance=False))[:, 1:]
    expected = (labels[found] == labels[:, None]).any(1).double().mean().item()
    assert recall_at_k(rows, labels, k) == pytest.approx(expected)


# ------------------------------------------------ pytorch-metric-learning as an oracle


@pytest.mark.parametrize("k", [1, 4, 8])
def test_recall_is_that_of_pytorch_metric_learning(k):
    pytest.importorskip("pytorch_metric_learning", reason="the extra `test` is not installed")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    rows = torch.randn(120, 6, generator=seeded(2))
    labels = torch.arange(120) % 10
    search = CustomKNN(CosineSimilarity())
    _, found = search(rows, k, rows, ref_includes_query=True)
    assert torch.equal(found, nearest(rows, k))
    expected = (labels[found] == labels[:, None]).any(1).double().mean().item()
    assert recall_at_k(rows, labels, k) == pytest.approx(expected)
    if k == 1:
        calculator = AccuracyCalculator(("precision_at_1",), k=1, knn_func=search)
        rated = calculator.get_accuracy(rows, labels)
        assert recall_at_k(rows, labels) == pytest.approx(rated["precision_at_1"])


def test_the_margins_loss_is_that_of_pytorch_metric_learning():
    """Also for an angle that the margin carries past 180 degrees, gradients included."""
    losses = pytest.importorskip(
        "pytorch_metric_learning.losses", reason="the extra `test` is not installed"
    )
    rows = torch.randn(9, 5, generator=seeded(3)).requires_grad_()
    weight, targets = torch.randn(4, 5, generator=seeded(4)), torch.arange(9) % 4
    with torch.no_grad():
        rows[0] = -2 * weight[0] + 0.1 * rows[0]
    theirs = losses.ArcFaceLoss(4, 5, margin=math.degrees(0.3), scale=16)
    theirs.W.data = weight.T.clone()
    cosines = F.cosine_similarity(rows[:, None], weight[None], dim=-1)
    assert cosines[0, 0].acos() + 0.3 > math.pi
    ours = F.cross_entropy(arcface_logits(16 * cosines, targets, 16.0, 0.3), targets)
    expected = theirs(rows, targets)
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(loss, rows, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


def test_classes_that_lie_apart_are_found_and_recall_grows_with_k():
    labels = torch.arange(40) % 4
    apart = F.one_hot(labels).float() + 0.01 * torch.randn(40, 4, generator=seeded(0))
    assert recall_at_k(apart, labels) == 1
    noise = torch.randn(40, 4, generator=seeded(0))
    found = [recall_at_k(noise, labels, k) for k in range(1, 40)]
    assert found == sorted(found)
    assert found[-1] == 1


def test_the_head_is_the_networks_own_if_nothing_is_asked_for():
    torch.manual_seed(0)
    plain = build("c_efficientnet_1.0", **SMALL).eval()
    found = embedding()
    torch.testing.assert_close(found(images()), plain(images()))
    assert found.embed(images()).shape == (4, plain.classifier.in_features)


def test_logits_of_a_scaled_head_are_cosines():
    network = embedding("gem", 16.0)
    rows, weight = network.embed(images()), network.classifier.weight
    cosines = F.cosine_similarity(rows[:, None], weight[None], dim=-1)
    torch.testing.assert_close(network(images()), 16 * cosines)
    assert network.classifier.bias is None


@pytest.mark.parametrize(
    "options",
    [{}, {"resnet_d": True, "sk_ratio": 2}, {"sk_ratio": 2, "big_little": [2, 4], "blur": 3}],
    ids=["R50", "R50D+SK", "R50D+SK+BL+AA"],
)
def test_a_resnet_has_the_papers_head(options):
    """GeM, 1 536 numbers, cosines, and no down-sampling in the last stage."""
    options = {**RESNET, "blocks": [2, 2], **options}
    trunk = build("resnet", **options, last_stride=1)
    coarse = embedding("gem", 16.0, 1536, build("resnet", **options))
    network = embedding("gem", 16.0, 1536, trunk)
    fine, small = (each.features(images()) for each in (network, coarse))
    assert fine.shape[1:] == (64, 32, 32)
    assert small.shape[2] == fine.shape[2] // 2
    rows = network.embed(images())
    assert rows.shape == (4, 1536)
    torch.testing.assert_close(rows, network.gem(fine) @ network.project.weight.T)
    assert network.classifier is trunk.classifier
    assert network.classifier.weight.shape == (7, 1536)
    cosines = F.cosine_similarity(rows[:, None], network.classifier.weight[None], dim=-1)
    torch.testing.assert_close(network(images()), 16 * cosines)
    network.train()(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("point", ["resnet", "resnet_sk", "resnet_sk_drop_block"])
def test_the_sweep_has_three_rows_of_the_papers_table(point):
    recipe = SWEEPS["retrieval"].point(point).recipe
    (change,) = recipe.changes
    network = change.apply(fresh_network(replace(recipe, width_mult=0.5), 0)).eval()
    assert network.embed(images(1)).shape == (1, 1536)
    assert network.features(images(1)).shape[2:] == (16, 16)
    assert network.classifier.out_features == 80
    places = drop_block_places(network, recipe.drop_block.at)
    assert bool(places) == (point == "resnet_sk_drop_block")
    assert any(isinstance(m, SelectiveKernel) for m in network.modules()) == ("sk" in point)


def test_a_mobilenet_has_a_head_too():
    network = embedding("gem", trunk=build("mobilenet_v1", width_mult=0.25, stem="cifar"))
    assert network.embed(images()).shape == (4, 256)


HEADS = [("average", 0.0), ("gem", 0.0), ("gem", 16.0), ("gem", 16.0, 24)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", ["c_efficientnet_1.0", "resnet"])
def test_a_network_with_embeddings_is_stored_folded_and_counted(trunk, head):
    network = embedding(*head, trunk=build(trunk, **(RESNET if trunk == "resnet" else SMALL)))
    content = pack(network)
    again = restore(content["spec"], content["model"]).eval()
    assert torch.equal(again(images()), network(images()))
    folded = fold_batch_norm(Embeddings(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images()), network.embed(images()), atol=1e-4, rtol=1e-3)
    assert record_operations(network)


def test_a_step_with_a_margin_has_the_loss_of_the_widened_logits():
    network = embedding(scale=16.0)
    network.dropout.p = 0.0
    train = replace(PLAIN.train, dropout=0.0)
    recipe = Recipe(options=SMALL, train=train, arcface=ArcFaceConfig(0.3))
    pixels = torch.randint(256, (4, 3, 32, 32), generator=seeded(0), dtype=torch.uint8)
    targets = torch.tensor([0, 6, 3, 1])
    plain = Step(network, replace(recipe, arcface=ArcFaceConfig()))
    wide = Step(network, recipe)
    losses = [step.loss_of(pixels, targets, None, None) for step in (plain, wide)]
    logits = logits_of(network, pixels)
    expected = F.cross_entropy(arcface_logits(logits, targets, 16.0, 0.3), targets)
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses[1] > losses[0]


def test_what_a_head_refuses():
    trunk = build("c_efficientnet_1.0", **SMALL)
    with pytest.raises(InputError, match="choose from average, gem"):
        EmbeddingNetwork(trunk, "max")
    with pytest.raises(InputError, match="scale of cosines is -1"):
        EmbeddingNetwork(trunk, scale=-1)
    flat = Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), "1")
    flat.spec = trunk.spec
    with pytest.raises(InputError, match="before its last part"):
        EmbeddingNetwork(flat)
    for size in (-1, 1.5, True):
        with pytest.raises(InputError, match=f"size of embeddings is {size}"):
            EmbeddingNetwork(trunk, size=size)
    with pytest.raises(InputError, match="'tweak'; choose from trunk, pooling, scale, size"):
        build("embedding", tweak=1)
    with pytest.raises(InputError, match="no blocks"):
        EmbeddingNetwork(build("torchvision_resnet18"))


def test_what_a_margin_and_a_rating_refuse():
    for margin in (-0.1, 1.6):
        with pytest.raises(InputError, match="below a right angle"):
            ArcFaceConfig(margin)
    with pytest.raises(InputError, match="no cosines"):
        Step(embedding(), Recipe(arcface=ArcFaceConfig(0.3)))
    wide = replace(PLAIN, changes=(Embed(scale=16.0),), arcface=ArcFaceConfig(0.3))
    assert resolved(wide, PROFILES["smoke"]).arcface.margin == 0.3
    with pytest.raises(InputError, match="no true class"):
        resolved(wide, PROFILES["smoke"], {"augment.mix": "cutmix"})
    with pytest.raises(InputError, match="teacher do not go together"):
        resolved(replace(wide, teacher=PLAIN), PROFILES["smoke"])
    with pytest.raises(InputError, match="class 2 has one image"):
        recall_at_k(torch.eye(3), torch.tensor([0, 0, 2]))
    for labels in (torch.tensor([0, 0]), torch.tensor([0, 0, 1, 1]), torch.zeros(3, 1)):
        with pytest.raises(InputError, match=rf"labels are .*{len(labels)}.*one label for each"):
            recall_at_k(torch.eye(3), labels)
    for value in (math.nan, math.inf):
        rows = torch.eye(4)
        rows[1, 2] = value
        for rate in (nearest, partial(recall_at_k, labels=torch.tensor([0, 0, 1, 1]))):
            with pytest.raises(InputError, match="1 of 4 images are NaN or infinite"):
                rate(rows, k=1)
    for k in (0, 3):
        with pytest.raises(InputError, match="give 1 to 2"):
            nearest(torch.eye(3), k)
