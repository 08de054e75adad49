"""Label smoothing by class similarity: worked by hand, against plain loops, and at the edges."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from published_data import require
from torch import Tensor, nn
from torch.testing import assert_close

from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.hooks import TargetTable
from micronet_lib.label_smoothing import (
    HARD_LABELS,
    PAPER_SMOOTHING,
    RELEASED_DENSE,
    RELEASED_PRUNE,
    RELEASED_UNIFORM,
    SLIDE,
    SmoothingConfig,
    class_clusters,
    class_similarity,
    class_tree,
    nearest_classes,
    smoothed_targets,
    smoothing_distribution,
    soft_cross_entropy,
    target_table,
)

CONFIGS = {
    "hard_labels": HARD_LABELS,
    "paper": PAPER_SMOOTHING,
    "released_dense": RELEASED_DENSE,
    "released_prune": RELEASED_PRUNE,
    "released_uniform": RELEASED_UNIFORM,
    "slide": SLIDE,
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_distribution = pytest.mark.parametrize(
    "config", [PAPER_SMOOTHING, RELEASED_DENSE, RELEASED_UNIFORM], ids=lambda config: config.form
)
# Classes 0 and 1 at 60 degrees, 2 opposite to 0, 3 at right angles to all; lengths must not matter.
ROWS = torch.tensor(
    [[2.0, 0, 0], [0.5, math.sqrt(3) / 2, 0], [-3.0, 0, 0], [0, 0, 0.1]], dtype=torch.float64
)


def random_weight(num_classes: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_classes, 6, generator=generator, dtype=torch.float64)


def random_batch(num_classes: int = 10, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that take a gradient, and two sets of class numbers."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(size, num_classes, generator=generator, dtype=torch.float64)
    a, b = torch.randint(num_classes, (2, size), generator=generator)
    return logits.requires_grad_(), a, b


# --------------------------------------------------------------------------------- similarity


def test_similarity_by_hand_and_within_one() -> None:
    expected = [[1, 0.5, -1, 0], [0.5, 1, -0.5, 0], [-1, -0.5, 1, 0], [0, 0, 0, 1]]
    assert_close(class_similarity(ROWS), torch.tensor(expected, dtype=torch.float64))
    weight = random_weight().float()
    parallel = class_similarity(torch.cat([weight, 7 * weight, -weight / 3]))
    assert parallel.abs().max() == 1
    assert_close(parallel[:10, 10:20].diagonal(), torch.ones(10))
    assert_close(parallel[:10, 20:].diagonal(), -torch.ones(10))


def test_a_row_of_zeros_is_like_no_class() -> None:
    weight = random_weight()
    weight[3] = 0
    similarity = class_similarity(weight)
    assert not similarity[3].any()
    assert not similarity[:, 3].any()
    even = torch.full((10,), 1 / 9, dtype=torch.float64)
    even[3] = 0
    for config in (PAPER_SMOOTHING, RELEASED_DENSE):
        assert_close(smoothing_distribution(weight, config)[3], even)
    assert not smoothing_distribution(weight, SLIDE)[3].any()


def test_nearest_classes() -> None:
    # Class 3 is equally far from all: the smaller number comes first.
    similarity, nearest = class_similarity(ROWS), [[1, 3, 2], [0, 3, 2], [3, 1, 0], [0, 1, 2]]
    assert nearest_classes(similarity, 3).tolist() == nearest
    assert nearest_classes(similarity, 1).tolist() == [row[:1] for row in nearest]
    for k in (0, 4):
        with pytest.raises(InputError, match="from 1 to 3"):
            nearest_classes(similarity, k)


def test_tree_and_clusters_by_hand() -> None:
    # At 0, 10, 90, 95 and 200 degrees: 90 and 95 are joined first, then 0 and 10, then those two
    # pairs at the mean of four distances; 200 degrees is left.
    angles = torch.tensor([0, 10, 90, 95, 200], dtype=torch.float64).deg2rad()
    similarity = (angles[:, None] - angles).cos().numpy()
    tree = class_tree(similarity)
    assert [set(row[:2]) for row in tree] == [{2, 3}, {0, 1}, {5, 6}, {4, 7}]
    assert tree[0, 2] == pytest.approx(1 - math.cos(math.radians(5)))
    between = sum(math.cos(math.radians(angle)) for angle in (90, 95, 80, 85)) / 4
    assert tree[2, 2] == pytest.approx(1 - between)
    for count, groups in ((3, [{0, 1}, {2, 3}, {4}]), (2, [{0, 1, 2, 3}, {4}])):
        found = class_clusters(similarity, count)
        named = [{i for i in range(5) if found[i] == k} for k in range(1, count + 1)]
        assert sorted(named, key=min) == groups


# ------------------------------------------------------------------------------ distributions


def test_forms_by_hand() -> None:
    # s / T with T = 0.2: class 0 sees 2.5, -5 and 0; class 3 sees three zeros.
    u = smoothing_distribution(ROWS, PAPER_SMOOTHING)
    z = math.exp(2.5) + math.exp(-5) + 1
    assert u[0].tolist() == pytest.approx([0, math.exp(2.5) / z, math.exp(-5) / z, 1 / z])
    assert u[3].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    # |s| with T = 1: class 0 sees 0.5, 1 and 0; its opposite is now the most alike.
    u = smoothing_distribution(ROWS, RELEASED_DENSE)
    z = math.exp(0.5) + math.e + 1
    assert u[0].tolist() == pytest.approx([0, math.exp(0.5) / z, math.e / z, 1 / z])
    # 0.7 for the true class; 0.3 shared as 1.6487 : 2.7183 : 1, which add up to 5.3670.
    row = target_table(ROWS, RELEASED_DENSE)[0]
    assert row.tolist() == pytest.approx([0.7, 0.09216, 0.15194, 0.05590], abs=1e-5)
    # 0.5, -1 and 0 as they are over the z of the released form; class 3 gets nothing at all.
    u = smoothing_distribution(ROWS, SLIDE)
    assert u[0].tolist() == pytest.approx([0, 0.5 / z, -1 / z, 0])
    assert u[3].tolist() == [0, 0, 0, 0]
    u = smoothing_distribution(ROWS, RELEASED_UNIFORM)
    assert u[1].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert not smoothing_distribution(ROWS, HARD_LABELS).any()


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def table_by_loops(weight: Tensor, config: SmoothingConfig) -> Tensor:
    """The formulas as they are printed, one pair of classes at a time."""
    t = config.temperature
    numerator, summand = {
        "none": (lambda s: 0, lambda s: 1),
        "uniform": (lambda s: 1, lambda s: 1),
        "paper": (lambda s: math.exp(s / t), lambda s: math.exp(s / t)),
        "released": (lambda s: math.exp(abs(s) / t), lambda s: math.exp(abs(s) / t)),
        "slide": (lambda s: s, lambda s: math.exp(abs(s))),
    }[config.form]
    rows = weight.tolist()
    table = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for y, true_row in enumerate(rows):
        others = {k: cosine(row, true_row) for k, row in enumerate(rows) if k != y}
        total = sum(summand(s) for s in others.values())
        for k, s in others.items():
            table[y, k] = config.smoothing * numerator(s) / total
        table[y, y] = 1 if config.form == "none" else 1 - config.smoothing
    return table


@every_config
def test_table_against_loops(config: SmoothingConfig) -> None:
    assert_close(target_table(random_weight(), config), table_by_loops(random_weight(), config))
    warm = replace(config, smoothing=0.45, temperature=0.7)
    assert_close(target_table(random_weight(), warm), table_by_loops(random_weight(), warm))
    # The length of a row plays no part, and no gradient goes through the targets.
    lengths = torch.linspace(0.01, 50, 10, dtype=torch.float64)[:, None]
    longer = (random_weight() * lengths).requires_grad_()
    table = target_table(longer, config)
    assert_close(table, table_by_loops(random_weight(), config))
    assert not table.requires_grad
    assert class_similarity(longer).requires_grad


@every_distribution
@pytest.mark.parametrize("num_classes", [2, 100])
def test_rows_are_probabilities(config: SmoothingConfig, num_classes: int) -> None:
    u = smoothing_distribution(random_weight(num_classes), config)
    assert not u.diagonal().any()
    assert (u >= 0).all()
    assert_close(u.sum(1), torch.ones(num_classes, dtype=torch.float64))
    table = target_table(random_weight(num_classes), config)
    assert_close(table.sum(1), torch.ones(num_classes, dtype=torch.float64))
    assert (table.diagonal() == 1 - config.smoothing).all()


def test_slide_rows_lose_what_they_should_share() -> None:
    weight = random_weight(100)
    u = smoothing_distribution(weight, SLIDE)
    assert not u.diagonal().any()
    assert (u < 0).any(1).all()
    assert (u.sum(1) <= 1 / math.e).all()
    # The bound is met where all classes point the same way.
    assert_close(
        smoothing_distribution(weight[:1].expand(5, -1), SLIDE).sum(1).mean().item(), 1 / math.e
    )
    # What is missing is exp in the numerator: with it the slide is the released code.
    similarity = class_similarity(weight)
    share = (u / similarity).fill_diagonal_(0)
    assert_close(share * similarity.abs().exp(), smoothing_distribution(weight, RELEASED_DENSE))


def test_only_the_slide_has_no_minimum() -> None:
    # Class 2 is opposite to class 0, so its target is negative; push its logit down for ever.
    logits = torch.tensor([[0.0, 0, -1e3, 0], [0, 0, -1e5, 0]], dtype=torch.float64)
    slide = [soft_cross_entropy(row[None], target_table(ROWS, SLIDE)[:1]).item() for row in logits]
    paper = [
        soft_cross_entropy(row[None], target_table(ROWS, PAPER_SMOOTHING)[:1]).item()
        for row in logits
    ]
    assert slide[1] < slide[0] < 0
    assert slide[1] < -1000
    assert 0 < paper[0] < paper[1]


def test_the_sign_of_the_similarity() -> None:
    paper = smoothing_distribution(ROWS, replace(PAPER_SMOOTHING, temperature=1.0))
    released = smoothing_distribution(ROWS, RELEASED_DENSE)
    assert paper[0].argmax() == 1
    assert released[0].argmax() == 2
    # Turning a class round changes the paper's form only.
    turned = ROWS * torch.tensor([[1.0], [1], [-1], [1]], dtype=torch.float64)
    assert_close(smoothing_distribution(turned, RELEASED_DENSE), released)
    assert smoothing_distribution(turned, PAPER_SMOOTHING)[0].argmax() == 2
    # Without a negative similarity the two are one.
    positive = random_weight().abs()
    assert_close(
        smoothing_distribution(positive, PAPER_SMOOTHING),
        smoothing_distribution(positive, replace(RELEASED_DENSE, temperature=0.2)),
    )


@pytest.mark.parametrize(
    "config", [PAPER_SMOOTHING, RELEASED_DENSE], ids=lambda config: config.form
)
def test_temperature_limits(config: SmoothingConfig) -> None:
    weight = random_weight().float()
    similarity = class_similarity(weight)
    alike = similarity if config.form == "paper" else similarity.abs()
    nearest = F.one_hot(nearest_classes(alike, 1)[:, 0], 10).float()
    for cold in (1e-4, 1e-30, 5e-324):
        u = smoothing_distribution(weight, replace(config, temperature=cold))
        assert_close(u, nearest)
    hot = smoothing_distribution(weight, replace(config, temperature=1e6))
    assert_close(hot, smoothing_distribution(weight, RELEASED_UNIFORM))
    # Equally near classes share.
    u = smoothing_distribution(ROWS, replace(PAPER_SMOOTHING, temperature=1e-9))
    assert u[3].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


# --------------------------------------------------------------------------- targets and loss


@every_config
def test_lookup(config: SmoothingConfig) -> None:
    table = target_table(random_weight(), config)
    _, a, b = random_batch()
    assert torch.equal(smoothed_targets(table, a), torch.stack([table[y] for y in a.tolist()]))
    assert torch.equal(smoothed_targets(table, a.int()), smoothed_targets(table, a))
    share = torch.linspace(0, 1, len(a), dtype=torch.float64)
    mixed = smoothed_targets(table, a, b, share)
    for i, lam in enumerate(share.tolist()):
        assert_close(mixed[i], lam * table[a[i]] + (1 - lam) * table[b[i]])
    for lam in (0.3, torch.tensor(0.3)):
        expected = 0.3 * table[a] + 0.7 * table[b]
        assert_close(smoothed_targets(table, a, b, lam), expected, atol=1e-7, rtol=0)
    assert smoothed_targets(table.float(), a, b, share).dtype == torch.float32
    assert torch.equal(smoothed_targets(table, a, b, 1), table[a])
    assert torch.equal(smoothed_targets(table, a, b, 0.0), table[b])


@every_config
def test_no_smoothing_is_plain_cross_entropy(config: SmoothingConfig) -> None:
    logits, a, _ = random_batch()
    amount = 0.9 if config.form == "none" else 0.0  # hard labels ignore the amount
    table = target_table(random_weight(), replace(config, smoothing=amount))
    assert torch.equal(table, torch.eye(10, dtype=torch.float64))
    assert_close(soft_cross_entropy(logits, smoothed_targets(table, a)), F.cross_entropy(logits, a))


@pytest.mark.parametrize("smoothing", [0.1, 0.3, 0.9])
def test_uniform_against_torch(smoothing: float) -> None:
    logits, a, _ = random_batch()

    def ours(smoothing: float) -> Tensor:
        table = target_table(random_weight(), SmoothingConfig("uniform", smoothing))
        return soft_cross_entropy(logits, smoothed_targets(table, a))

    # PyTorch and the paper's text share among all 10 classes, we among the 9 others.
    assert_close(ours(smoothing), F.cross_entropy(logits, a, label_smoothing=smoothing * 10 / 9))
    assert_close(ours(smoothing * 9 / 10), F.cross_entropy(logits, a, label_smoothing=smoothing))
    assert not torch.isclose(ours(smoothing), F.cross_entropy(logits, a, label_smoothing=smoothing))


def loss_by_samples(logits: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy on soft targets, one image and one class at a time."""
    total = logits.new_zeros(())
    for row, target in zip(logits, targets.tolist(), strict=True):
        log_z = row.exp().sum().log()
        for k, share in enumerate(table[target].tolist()):
            total = total - share * (row[k] - log_z)
    return total / len(logits)


@every_config
def test_one_mixed_loss_is_the_mix_of_two(config: SmoothingConfig) -> None:
    logits, a, b = random_batch()
    table = target_table(random_weight(), config)
    one = soft_cross_entropy(logits, smoothed_targets(table, a, b, 0.3))
    first, second = loss_by_samples(logits, table, a), loss_by_samples(logits, table, b)
    two = 0.3 * first + 0.7 * second
    assert_close(one, two)
    (of_one,) = torch.autograd.grad(one, logits)
    (of_two,) = torch.autograd.grad(two, logits)
    assert_close(of_one, of_two)
    # Softmax minus target, for targets that add up to 1.
    if config.form != "slide":
        target = 0.3 * table[a] + 0.7 * table[b]
        assert_close(of_one, (logits.detach().softmax(1) - target) / len(logits))


# ----------------------------------------------------------------------------------- precision


@every_config
def test_precision(config: SmoothingConfig) -> None:
    logits, a, b = random_batch()
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        weight = random_weight().to(dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        table = target_table(weight, config)
        assert table.dtype == expected
        # The weight is rounded, the arithmetic is not.
        assert_close(table, target_table(weight.double(), config).to(expected))
        loss = soft_cross_entropy(logits.to(dtype), smoothed_targets(table, a, b, 0.3))
        assert loss.dtype == expected
        exact = soft_cross_entropy(logits.to(dtype).double(), smoothed_targets(table, a, b, 0.3))
        assert_close(loss.double(), exact.double(), rtol=1e-6, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(target_table(weight, config), table)


# --------------------------------------------------------------------------------- per epoch


def classifier_of(weight: Tensor) -> nn.Linear:
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    classifier.weight = nn.Parameter(weight)
    return classifier


def test_the_table_is_made_anew_in_place_when_an_epoch_starts_or_is_resumed() -> None:
    classifier = classifier_of(random_weight())
    weight = classifier.weight.detach()
    hook = TargetTable(classifier, PAPER_SMOOTHING)
    _, a, b = random_batch()
    table, place, before = hook.table, hook.table.data_ptr(), hook.table.clone()
    assert torch.equal(before, target_table(weight, PAPER_SMOOTHING))
    weight.mul_(-1).add_(1)
    assert torch.equal(hook(a), before[a])  # within an epoch the table stands still
    hook.start_epoch(3)
    assert hook.table is table
    assert table.data_ptr() == place
    assert not torch.equal(table, before)
    assert torch.equal(table, target_table(weight, PAPER_SMOOTHING))
    assert torch.equal(hook(a, b, 0.3), smoothed_targets(table, a, b, 0.3))
    resumed = TargetTable(classifier_of(ROWS.new_ones(10, 6)), PAPER_SMOOTHING)
    place = resumed.table.data_ptr()
    resumed.load_state_dict(hook.state_dict())
    assert torch.equal(resumed.table, table)
    assert resumed.table.data_ptr() == place


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_sees_the_new_table() -> None:
    classifier = classifier_of(random_weight().float().cuda())
    weight = classifier.weight.detach()
    hook = TargetTable(classifier, PAPER_SMOOTHING)
    logits, a, b = (tensor.detach().cuda() for tensor in random_batch())
    lam = torch.tensor(0.3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        soft_cross_entropy(logits.float(), hook(a, b, lam))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = soft_cross_entropy(logits.float(), hook(a, b, lam))
    for changed in (weight.flip(0), weight.abs()):
        weight.copy_(changed)
        hook.start_epoch(0)
        lam.fill_(0.6)
        graph.replay()
        targets = smoothed_targets(target_table(weight, PAPER_SMOOTHING), a, b, 0.6)
        assert_close(loss, soft_cross_entropy(logits.float(), targets))


# --------------------------------------------------------------------------- what is published


def test_the_suggested_values_are_the_published_ones() -> None:
    rows = records.paper("label_smoothing").query("metric in ('smoothing', 'temperature')")
    values: pd.Series = rows.set_index(["point", "metric"])["value"]
    assert len(values) == 5
    for (point, metric), value in values.items():
        assert getattr(CONFIGS[point], metric) == value
    assert SmoothingConfig("paper") == PAPER_SMOOTHING


@pytest.mark.parametrize("name", ["v1_pr_60", "v2_pr_60"])
def test_the_forms_on_the_published_classifiers(name: str) -> None:
    path = checkpoint_path(f"micronet_{name}")
    require(path)
    weight = load_published(path).head.classifier.weight

    def classes_in_use(config: SmoothingConfig) -> float:
        """The exponential of a row's entropy: 99 where all others get the same."""
        u = smoothing_distribution(weight, config)
        return torch.special.entr(u).sum(1).exp().mean().item()

    assert classes_in_use(PAPER_SMOOTHING) == pytest.approx(75.4, abs=1)
    assert classes_in_use(RELEASED_DENSE) > 98.5
    slide = smoothing_distribution(weight, SLIDE)
    assert slide.sum(1).abs().max() < 0.04
    assert 0.55 < (slide < 0).double().mean() < 0.7


# -------------------------------------------------------------------------------------- errors


def test_config_errors() -> None:
    with pytest.raises(InputError, match="'cosine'; choose from none, uniform, paper, released, s"):
        SmoothingConfig("cosine")  # type: ignore[arg-type]
    for smoothing in (-0.1, 1, math.nan):
        with pytest.raises(InputError, match=r"is not in \[0, 1\)"):
            SmoothingConfig("paper", smoothing=smoothing)
    for temperature in (0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="not a finite number above 0"):
            SmoothingConfig("paper", temperature=temperature)


def test_weight_errors() -> None:
    for shape in ((6,), (1, 6), (10, 6, 1, 1), (0, 6)):
        for config in CONFIGS.values():
            with pytest.raises(InputError, match=r"expected \[C, D\]"):
                target_table(torch.ones(shape), config)


def test_lookup_errors() -> None:
    table = target_table(ROWS, PAPER_SMOOTHING)
    a = torch.tensor([0, 1, 2])
    for mix in ({"targets_b": a}, {"lam": 0.5}):
        with pytest.raises(InputError, match="belong together"):
            smoothed_targets(table, a, **mix)
    for lam in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"not in \[0, 1\]"):
            smoothed_targets(table, a, a, lam)
    for shape in ((1,), (4,), (3, 1)):
        with pytest.raises(InputError, match=r"expected a number or \[3\]"):
            smoothed_targets(table, a, a, torch.full(shape, 0.5))
    for wrong in (torch.tensor(1), torch.eye(3).long()):
        with pytest.raises(InputError, match="expected \\[N\\]"):
            smoothed_targets(table, wrong)
    with pytest.raises(InputError, match="as many of targets_b"):
        smoothed_targets(table, a, a[:2], 0.5)
    for dtype in (torch.uint8, torch.bool, torch.float32):
        with pytest.raises(InputError, match="expected int64 or int32"):
            smoothed_targets(table, a.to(dtype))
    with pytest.raises(IndexError):
        smoothed_targets(table, a + 2)


def test_loss_errors() -> None:
    logits, a, _ = random_batch()
    with pytest.raises(InputError, match="smoothed_targets turns class numbers into them"):
        soft_cross_entropy(logits, a)
    with pytest.raises(InputError, match=r"expected two \[N, C\]"):
        soft_cross_entropy(logits, smoothed_targets(target_table(ROWS, PAPER_SMOOTHING), a % 4))


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_a_table_that_is_not_square_is_refused(shape):
    with pytest.raises(InputError, match=r"expected \[C, C\]"):
        smoothed_targets(torch.ones(shape), torch.tensor([0, 1]))
