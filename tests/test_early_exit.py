"""Early exits: hand counts, what a frozen trunk keeps, and inference that really skips."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_networks import seeded, single_thread
from tiny_lab import sweep_of, tiny_lab
from torch import nn

from micronet_lib.architecture import Network, Wrapped, build, register
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.early_exit import (
    AddExit,
    AllExits,
    Decision,
    ExitHead,
    ExitLoss,
    ExitNetwork,
    chosen_threshold,
    confidence_of,
    exit_loss,
    expected_score,
    fitted_temperature,
    leave_early,
    num_exits,
)
from micronet_lib.errors import InputError
from micronet_lib.lab import running
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measures import early_exit as measure
from micronet_lib.lab.running.networks import content_of, images_of, network_of
from micronet_lib.lab.storage.networks import pack, restore
from micronet_lib.lab.training.evaluation import logits_of
from micronet_lib.lab.training.hooks import TargetTable
from micronet_lib.lab.training.step import Objective, Step
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.scoring import score_network
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE
from micronet_lib.scoring.operations import record_operations

BLOCK = "blocks.2"
WHERE = [("c_efficientnet_1.0", BLOCK), ("chain_of_three", "1"), ("resnet", "stages.0.0")]
NARROW = {
    "c_efficientnet_1.0": {"width_mult": 0.15},
    "resnet": {"blocks": [2, 1], "width_mult": 0.125, "stem": "cifar", "sk_ratio": 2},
}


@register("chain_of_three")
def _chain(num_classes: int = 5) -> Network:
    """A network of another library: a sequence of two convolutions and a classifier."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), head)
    return Wrapped(layers, "3.2")


@register("flat_chain")
def _flat(num_classes: int = 4) -> Network:
    """A network that has no image after its first part."""
    return Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes)), "1")


def exit_network(model: str = "c_efficientnet_1.0", after: str = BLOCK, **head) -> ExitNetwork:
    """An exit in a narrow network, in float64, so that rounding decides nothing."""
    torch.manual_seed(0)
    trunk = build(model, **NARROW.get(model, {}))
    return AddExit(after, **{"hidden_chs": 7, **head}).apply(trunk).double().eval()


def images(num: int = 12) -> torch.Tensor:
    return torch.randn(num, 3, 32, 32, generator=seeded(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


# ------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize(("model", "after"), WHERE)
def test_the_last_exit_is_the_trunk_and_the_early_one_reads_its_block(model, after):
    network, x = exit_network(model, after), images()
    early, last = network.exits(x)
    assert torch.equal(last, network.trunk(x))
    assert torch.equal(last, network(x))
    assert torch.equal(early, network.early(x))
    features = x
    for name, part in network.trunk.parts.items():
        features = part(features)
        if name == after:
            break
    assert torch.equal(early, network.exit_head(features))
    assert early.shape == last.shape


def test_the_parts_of_a_micronet_are_the_network():
    network, x = exit_network().trunk, images(2)
    assert list(network.parts) == ["stem", *(f"blocks.{k}" for k in range(16)), "head"]
    by_parts = x
    for part in network.parts.values():
        by_parts = part(by_parts)
    assert torch.equal(by_parts, network(x))


def test_the_head_by_hand():
    head = ExitHead(2, 3, 4).double().eval()
    with torch.no_grad():
        head.conv_dw.weight.zero_()[:, 0, 1, 1] = 1  # the pixel itself
        head.conv_expand.weight.fill_(1)
        head.classifier.weight.copy_(torch.arange(12.0).view(4, 3))
        head.classifier.bias.zero_()
    x = torch.full((1, 2, 4, 4), 5.0, dtype=torch.float64)
    norm = 1 / (1 + head.bn_dw.eps) ** 0.5  # fresh averages: mean 0, variance 1
    seen = 5 * norm  # above 3, where HardSwish changes nothing
    pooled = 2 * seen * norm
    rows = torch.tensor([0 + 1 + 2, 3 + 4 + 5, 6 + 7 + 8, 9 + 10 + 11.0], dtype=torch.float64)
    torch.testing.assert_close(head(x)[0], pooled * rows)


def test_a_stride_leaves_the_shape_of_the_answer():
    for stride in (1, 2):
        assert ExitHead(4, 8, 10, stride)(torch.zeros(2, 4, 9, 9)).shape == (2, 10)


def test_the_spec_builds_the_network_again():
    network = exit_network(stride=2)
    content = pack(network)
    again = restore(content["spec"], content["model"])
    assert again.spec == network.spec
    for one, other in zip(network.exits(images(2)), again.exits(images(2)), strict=True):
        assert torch.equal(one, other)


def test_folding_keeps_both_answers():
    network, x = exit_network(), images()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5, generator=seeded(2))
    folded = fold_batch_norm(AllExits(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), torch.stack(network.exits(x), 1))


@pytest.mark.parametrize(
    ("trunk", "settings", "words"),
    [
        ("c_efficientnet_1.0", {"after": "blocks.16"}, "unknown block.*'blocks.16'.*blocks.15"),
        ("c_efficientnet_1.0", {"after": "head"}, "unknown block"),
        ("c_efficientnet_1.0", {"hidden_chs": 0}, "hidden_chs.*1 or more"),
        ("c_efficientnet_1.0", {"stride": 0}, "stride.*1 or more"),
        ("torchvision_resnet18", {"after": "layer1"}, "no blocks that an exit could follow"),
        ("early_exit", {"after": BLOCK}, "no blocks that an exit could follow"),
        ("flat_chain", {"after": "0"}, r"0 returns \[1, 3072\]"),
    ],
)
def test_a_network_or_head_that_cannot_be_is_refused(trunk, settings, words):
    narrow = {"width_mult": 0.15} if "efficientnet" in trunk else {}
    network = exit_network() if trunk == "early_exit" else build(trunk, **narrow)
    with pytest.raises(InputError, match=words):
        AddExit(**settings).apply(network)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"after": 4}, "after of an exit head is 4; give the name of a part"),
        ({"hidden_chs": -3}, "hidden_chs of an exit head is -3; give a whole number"),
        ({"hidden_chs": 2.0}, "hidden_chs of an exit head is 2.0"),
        ({"stride": True}, "stride of an exit head is True"),
    ],
)
def test_settings_of_the_wrong_type_are_refused_before_there_is_a_network(settings, words):
    with pytest.raises(InputError, match=words):
        AddExit(**settings)


def test_exits_are_counted():
    network = exit_network()
    modes = [part.training for part in network.train().modules()]
    assert [num_exits(each) for each in (network, network.trunk)] == [2, 1]
    assert [part.training for part in network.modules()] == modes


# --------------------------------------------------------------------------------------- the loss


def test_the_loss_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], dtype=torch.float64)
    targets = torch.eye(3, dtype=torch.float64)[[1, 0]]
    by_hand = (1.5 * -torch.tensor(0.25).log() + 1.8 * -torch.tensor(0.8).log()) / 2
    torch.testing.assert_close(exit_loss(p.log(), targets).item(), by_hand.item())
    plain = exit_loss(p.log(), targets, confidence=False)
    torch.testing.assert_close(plain, F.cross_entropy(p.log(), targets))


def test_the_gradient_flows_through_the_confidence():
    logits = torch.randn(4, 5, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    targets = torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3]]
    assert torch.autograd.gradcheck(lambda x: exit_loss(x, targets), logits)


@pytest.mark.parametrize(("share", "confidence"), [(1.0, True), (0.5, False), (0.25, True)])
def test_the_objective_shares_the_loss_out(share, confidence):
    network = exit_network().float()
    table = TargetTable(network.classifier, SmoothingConfig())
    batch = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
    targets = torch.tensor([0, 5, 9, 50, 99, 1])
    exits = ExitLoss(share, confidence)
    found = Objective(table, exits=exits)(network, batch, targets, None)
    plain = Objective(table)(network, batch, targets, None)
    alone = Objective(table, exits=ExitLoss(1.0, confidence))(network, batch, targets, None)
    torch.testing.assert_close(found, share * alone + (1 - share) * plain)


def test_one_step_moves_the_head_and_no_bit_of_a_frozen_trunk():
    network = exit_network().float()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recipe = Recipe(exits=ExitLoss(1.0))
    step = Step(network.train(), replace(recipe, train=replace(recipe.train, freeze=("trunk",))))
    for hook in step.hooks:
        hook.start_epoch(0)
    batch = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
    step(batch, torch.arange(6), None, 0.1)
    for name, value in network.state_dict().items():
        same = torch.equal(value, before[name])
        assert same == name.startswith("trunk."), name


def test_a_frozen_trunk_is_folded_and_gives_the_same_loss():
    network = exit_network().float()
    table = TargetTable(network.classifier, SmoothingConfig())
    train = replace(Recipe().train, freeze=("trunk",))
    step = Step(network, Recipe(exits=ExitLoss(1.0), train=train))
    front = step.objective.front
    assert front is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in front.modules())
    batch = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
    plain = Objective(table, exits=ExitLoss(1.0))(network, batch, torch.arange(6), None)
    torch.testing.assert_close(step.objective(network, batch, torch.arange(6), None), plain)
    assert Step(network.requires_grad_(True), Recipe(exits=ExitLoss(0.5))).objective.front is None


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan"), "1", True, None])
def test_a_share_outside_0_to_1_is_refused(weight):
    with pytest.raises(InputError, match=r"exits.weight.*\[0, 1\]"):
        ExitLoss(weight)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"two \[N, C\]"):
        exit_loss(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(exits=ExitLoss(1.0)), "no early exit"),
        (Recipe(changes=(AddExit(),)), "nothing trains"),
        (Recipe(changes=(AddExit(),), exits=ExitLoss(1.0), teacher=Recipe()), "for the teacher"),
    ],
)
def test_settings_that_are_wrong_together_are_refused(recipe, words):
    recipe = replace(recipe, train=replace(recipe.train, epochs=1))
    if recipe.teacher is not None:
        recipe = replace(recipe, teacher=replace(recipe.train and Recipe(train=recipe.train)))
    with pytest.raises(InputError, match=words):
        resolved(recipe, PROFILES["smoke"])


# ------------------------------------------------------------------------- threshold, temperature


def test_a_threshold_by_hand():
    sure = torch.tensor([0.9, 0.3, 0.8, 0.6, 0.7])
    agrees = torch.tensor([True, False, True, True, False])
    assert chosen_threshold(sure, agrees, most=0.0) == pytest.approx(0.7)  # 0.9 and 0.8 leave
    assert chosen_threshold(sure, agrees, most=0.2) == pytest.approx(0.3)  # one of five may change
    assert chosen_threshold(sure, agrees, most=0.4) == 0.0
    assert chosen_threshold(sure, ~agrees | agrees, most=0.0) == 0.0
    nobody = chosen_threshold(sure, torch.zeros(5).bool(), most=0.0)
    assert not (sure > nobody).any()


def test_an_answer_agrees_or_not_and_is_no_number():
    """`~` makes -2 of 1: no image would be too many, or every one."""
    with pytest.raises(InputError, match=r"agrees is torch.int64; give a comparison"):
        chosen_threshold(torch.tensor([0.9, 0.3]), torch.tensor([1, 0]))


def test_images_of_equal_confidence_stay_together():
    sure = torch.tensor([0.5, 0.5, 0.5, 0.9])
    agrees = torch.tensor([True, True, False, True])
    threshold = chosen_threshold(sure, agrees, most=0.0)
    assert (sure > threshold).tolist() == [False, False, False, True]


def test_a_threshold_keeps_its_promise_and_no_lower_one_does():
    sure = torch.rand(200, generator=seeded(4), dtype=torch.float64)
    agrees = torch.rand(200, generator=seeded(5)) < 0.5 + sure / 2
    threshold = chosen_threshold(sure, agrees, most=0.05)
    changed = [((sure > t) & ~agrees).double().mean().item() for t in (threshold, threshold - 1e-9)]
    assert changed[0] <= 0.05 < changed[1]


def test_a_temperature_by_hand():
    """Two classes, and three of four right: the best probability is 0.75, so the logit is log 3."""
    logits = torch.tensor([[6.0, 0.0]] * 4)
    found = fitted_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert found == pytest.approx(6 / torch.tensor(3.0).log().item())


def test_no_other_temperature_is_better():
    logits = 5 * torch.randn(60, 10, generator=seeded(6), dtype=torch.float64)
    targets = (logits / 3).softmax(1).multinomial(1, generator=seeded(7))[:, 0]
    best = fitted_temperature(logits, targets)
    losses = [F.cross_entropy(logits / (best * f), targets).item() for f in (1, 0.98, 1.02)]
    assert losses[0] < min(losses[1:])


def test_a_temperature_stays_finite_where_every_answer_is_right():
    assert 0.0099 < fitted_temperature(torch.eye(3), torch.arange(3)) < 0.1


def test_the_confidence_is_the_largest_probability():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    torch.testing.assert_close(confidence_of(logits, 2.0), torch.tensor([0.7310586, 0.5]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(InputError, match="temperature"):
        confidence_of(torch.zeros(1, 2), temperature)


def test_nothing_is_chosen_without_held_out_images():
    none = torch.empty(0)
    with pytest.raises(InputError, match="no held-out images"):
        chosen_threshold(none, none.bool())
    with pytest.raises(InputError, match="no held-out images"):
        fitted_temperature(torch.empty(0, 5), none.long())
    with pytest.raises(InputError, match=r"fraction in \[0, 1\]"):
        chosen_threshold(torch.ones(2), torch.ones(2).bool(), most=1.5)


# -------------------------------------------------------------------------------------- inference


def middle(sure: torch.Tensor) -> float:
    """A threshold far from any confidence: the middle of the widest gap of the inner half."""
    inner = sure.sort().values[len(sure) // 4 : -len(sure) // 4]
    widest = inner.diff().argmax()
    return (inner[widest] + inner[widest + 1]).item() / 2


@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize(("model", "after"), WHERE)
def test_a_batch_is_answered_like_its_images_one_by_one(model, after, temperature):
    network, x = exit_network(model, after), images()
    early, last = (logits.detach() for logits in network.exits(x))
    threshold = middle(confidence_of(early, temperature))
    found = leave_early(network, x, threshold, temperature)
    assert 0 < found.left.sum() < len(x)
    torch.testing.assert_close(found.logits, torch.where(found.left[:, None], early, last))
    alone = [leave_early(network, image[None], threshold, temperature) for image in x]
    assert [bool(one.left) for one in alone] == found.left.tolist()
    torch.testing.assert_close(torch.cat([one.logits for one in alone]), found.logits)


def test_nobody_or_everybody_leaves_at_the_ends():
    network, x = exit_network(), images()
    stay, leave = leave_early(network, x, 1.0), leave_early(network, x, 0.0)
    assert not stay.left.any()
    assert leave.left.all()
    torch.testing.assert_close(stay.logits, network.trunk(x).detach())
    torch.testing.assert_close(leave.logits, network.early(x).detach())


def test_the_rest_runs_for_nobody_who_left():
    network, x = exit_network(), images()
    seen: list[int] = []
    network.trunk.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    threshold = middle(confidence_of(network.early(x).detach()))
    stayed = int((~leave_early(network, x, threshold).left).sum())
    leave_early(network, x, 0.0)
    assert seen == [stayed]


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(InputError, match=r"threshold.*\[0, 1\]"):
        leave_early(exit_network(), images(1), threshold)


def test_nobody_leaves_a_network_in_training_mode():
    with pytest.raises(InputError, match=r"training mode: call its eval\(\)"):
        leave_early(exit_network().train(), images(2), 0.5)


def test_a_network_without_an_exit_cannot_be_left():
    with pytest.raises(InputError, match="no early exit"):
        leave_early(exit_network().trunk, images(1), 0.5)


def test_a_file_of_another_method_is_refused_in_one_line():
    made = exit_network()
    spec = {"name": made.spec.name, "options": made.spec.options}
    with pytest.raises(InputError, match="them missing, such as 'exit_head") as refused:
        restore(spec, {f"trunk.{name}": v for name, v in made.trunk.state_dict().items()})
    assert "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------- counts


def chain_counts() -> dict[str, int]:
    """Products and sums of `chain_of_three` with an exit of 7 channels, by hand, official rules."""
    conv1 = 16 * 16 * 4
    relu, conv2 = conv1, 8 * 8 * 6
    front = {"mult": conv1 * 27 + relu, "add": conv1 * 26 + conv1}
    dw, pw = 16 * 16 * 4, 16 * 16 * 7
    head = {
        "mult": dw * 9 + pw * 4 + 4 * (dw + pw) + 7 + 7 * 5,
        "add": dw * 8 + dw + pw * 3 + pw + (dw + pw) + 7 * (16 * 16 - 1) + 6 * 5 + 5,
    }
    rest = {
        "mult": conv2 * 36 + 6 + 6 * 5,
        "add": conv2 * 35 + conv2 + 6 * (8 * 8 - 1) + 5 * 5 + 5,
    }
    return {f"{part}.{kind}": counts[kind] for part, counts in
            {"front": front, "head": head, "rest": rest}.items() for kind in counts}  # fmt: skip


@pytest.mark.parametrize("exit_rate", [0.0, 0.25, 1.0])
def test_operations_are_counted_as_by_hand(exit_rate):
    network, hand = exit_network("chain_of_three", "1"), chain_counts()
    score = expected_score(network, exit_rate)
    for kind, found in (("mult", score.num_mults), ("add", score.num_adds)):
        always = hand[f"front.{kind}"] + hand[f"head.{kind}"]
        assert found == pytest.approx(always + (1 - exit_rate) * hand[f"rest.{kind}"])
    stored = (27 * 4 + 4) + (9 * 4 + 4 + 4 * 7 + 7 + 7 * 5 + 5) + (4 * 9 * 6 + 6 + 6 * 5 + 5)
    assert score.num_params == stored
    assert score.score == pytest.approx(stored / 2 / PARAM_BASE + score.math_ops / OPS_BASE)


def test_the_score_is_linear_between_its_ends():
    network = exit_network()
    none, some, everybody = (expected_score(network, p).score for p in (0.0, 0.3, 1.0))
    assert some == pytest.approx(0.7 * none + 0.3 * everybody)
    trunk = score_network(network.trunk, "official").score
    assert none > trunk  # the head is paid for, whoever leaves


def test_the_decision_is_charged_as_softmax_maximum_and_comparison():
    network = exit_network("chain_of_three", "1")
    plain, charged = expected_score(network, 0.5), expected_score(network, 0.5, decision=True)
    # Five exponentials and five quotients, four comparisons for the largest, one at the end.
    assert charged.num_mults - plain.num_mults == 5 + 5 + 4 + 1
    assert charged.num_adds - plain.num_adds == 4
    assert charged.param_storage == plain.param_storage
    kinds = [op.kind for op in record_operations(Decision(), (5,))]
    assert kinds == ["unary", "sum", "product", "max", "compare"]


@pytest.mark.parametrize("exit_rate", [-0.1, 1.1, float("nan")])
def test_an_exit_rate_outside_0_to_1_is_refused(exit_rate):
    with pytest.raises(InputError, match=r"exit rate.*\[0, 1\]"):
        expected_score(exit_network(), exit_rate)


def test_an_exit_rate_of_a_network_with_one_exit_is_refused():
    with pytest.raises(InputError, match="1 exits"):
        expected_score(exit_network().trunk, 0.5)


# ------------------------------------------------------------------------------------ in the lab


def toy() -> Recipe:
    return Recipe(model="c_efficientnet_3.0", train=SWEEPS["expand_ratio"].points()[0].recipe.train)


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as found:
        yield found


@pytest.fixture
def exits():
    """A dense network, then its exit with the trunk frozen, and trained along."""
    dense = toy()
    recipes = {point.name: point.recipe for point in SWEEPS["exit_training"].points()}
    made = {
        name: replace(recipe, start=dense, changes=(AddExit("blocks.0", 5), *recipe.changes[1:]))
        for name, recipe in recipes.items()
    }
    return replace(sweep_of("exits", dense=dense, **made), measures=("early_exit",))


def test_a_frozen_trunk_ends_as_it_began_to_the_last_bit(lab, exits):
    running.ensure(exits, "smoke", point="[fj]*", progress=False)
    made = {case.point: network_of(case.recipe, case.profile, 0)
            for case in cases(exits, PROFILES["smoke"], 0, None, None)}  # fmt: skip
    dense, frozen, joint = (made[n].state_dict() for n in ("dense", "frozen", "joint"))
    assert all(torch.equal(value, frozen[f"trunk.{name}"]) for name, value in dense.items())
    assert not all(torch.equal(value, joint[f"trunk.{name}"]) for name, value in dense.items())
    head = "exit_head.classifier.weight"
    assert not torch.equal(frozen[head], joint[head])


def test_another_seed_draws_another_head_and_the_same_seed_the_same(lab, exits):
    heads = []
    for seed in (0, 0, 1):
        running.ensure(exits, "smoke", seed, point="frozen", progress=False)
        (case,) = cases(exits, PROFILES["smoke"], seed, None, "frozen")
        state = content_of(case.recipe, case.profile, seed)["model"]
        heads.append(state["exit_head.conv_expand.weight"])
        case.network_path.unlink()
        case.record_path.unlink()
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_record_agrees_with_inference_that_skips(lab, exits):
    table = running.ensure(exits, "smoke", point="frozen", progress=False)
    (case,) = cases(exits, PROFILES["smoke"], 0, None, "frozen")
    record = case.record()
    metrics, curves = record.metrics, record.arrays["exit_curves"]
    assert table["threshold"].item() == metrics["threshold"]
    network = network_of(case.recipe, case.profile, 0)
    test = images_of(case.recipe, case.profile, "test")
    both = logits_of(AllExits(network), test.images)
    sure = confidence_of(both[:, 0])
    for index in (0, 50, 100):
        left = sure > curves["thresholds"][index]
        assert curves["exit_rate"][index] == pytest.approx(left.double().mean().item(), abs=0.011)
    right = [(both[:, k].argmax(1) == test.targets).double().mean().item() for k in (0, 1)]
    assert curves["top1"][0] == pytest.approx(right[0], abs=0.011)
    assert curves["top1"][100] == pytest.approx(right[1], abs=0.011)
    assert metrics["exit_top1"] == pytest.approx(right[0], abs=0.011)
    assert metrics["official.trunk_score"] < metrics["official.score"]
    scores = record.arrays["exit_scores"]["official"]
    between = scores[0] + metrics["exit_rate"] * (scores[1] - scores[0])
    assert metrics["official.expected_score"] == pytest.approx(between)
    assert metrics["decision.expected_score"] > metrics["official.expected_score"]
    assert 0 <= metrics["held_out_exit_rate"] <= 1
    assert metrics["time_ratio"] > 0


def test_a_network_without_an_exit_is_not_rated_as_one(lab, exits):
    running.ensure(exits, "smoke", point="frozen", progress=False)
    (case,) = cases(exits, PROFILES["smoke"], 0, None, "dense")
    with pytest.raises(InputError, match="this has none"):
        measure.early_exit(case, network_of(case.recipe, case.profile, 0), False)


def test_a_recipe_that_would_lose_its_exit_is_refused_before_it_trains(lab, exits):
    state = torch.get_rng_state()
    without = {"changes": [], "exits.weight": 0.0}
    with pytest.raises(InputError, match="frozen: early_exit rates a network with an exit"):
        running.ensure(exits, "smoke", 0, without, "frozen", progress=False)
    assert lab.trained == []
    assert (torch.get_rng_state() == state).all()
    running.ensure(exits, "smoke", 0, {"train.lr": 0.5}, "frozen", progress=False)
    assert len(lab.recorded) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_head_has_the_mode_of_its_trunk_and_parts_keep_theirs(training):
    trunk = build("micronet_v1", width_mult=0.25).train(training)
    trunk.blocks[0].train(not training)
    made = AddExit(BLOCK, hidden_chs=8).apply(trunk)
    assert made.training == made.exit_head.training == training
    assert made.trunk.blocks[0].training == (not training)
    assert made.trunk.blocks[1].training == training
