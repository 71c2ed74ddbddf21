"""The formulas of Balanced Sigmoid's peers: oracles, gradients, limits, and what is drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import oracles
import peer_oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.losses.activations import (
    GUMBEL,
    SIGMOID_BESIDE_BACKGROUND,
    SIGMOID_WITH_BACKGROUND,
    GroupSoftmax,
)
from balms_det.runtime.errors import InputError

RTOL = 1e-10
K = 7
COUNTS = [2000, 300, 50, 9, 3, 1, 0]
IMAGE_COUNTS = [300, 200, 40, 9, 3, 1, 0]
STATS = ClassStats(
    image_counts=np.array(IMAGE_COUNTS),
    instance_counts=np.array(COUNTS),
    num_images=1000,
    num_annotated_images=500,
    category_ids=tuple(range(1, K + 1)),
    names=tuple("abcdefg"),
    groups=tuple("ffcrrrr"),
)
NUM_ROWS = 40
LAMBDA = 0.1


def batch(num_columns, num_rows=NUM_ROWS, scale=2.0, seed=0):
    """Logits in float64, and classes that include each one and, for a third, the background."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    return logits, (torch.arange(num_rows) % (K + 4)).clamp(max=K)


def draws_of(num_columns, num_rows=NUM_ROWS):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(num_rows, num_columns, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Formula:
    """A loss and its oracle.

    Attributes:
        loss: of (logits, gt_classes), with further keyword arguments.
        oracle: see tests/peer_oracles.py; its further arguments are bound.
        num_logits: columns of the logits.
        num_draws: columns of what the loss draws, 0 if it draws nothing.
        limit: keyword arguments that make the loss that of `limit_oracle`.
    """

    loss: Callable
    oracle: Callable
    num_logits: int
    limit: dict
    limit_oracle: Callable
    num_draws: int = 0


IS_TAIL = torch.tensor(IMAGE_COUNTS) / STATS.num_images < LAMBDA
NO_TAIL = torch.zeros(K, dtype=torch.bool)
GROUPS = losses.instance_count_groups(torch.tensor(COUNTS))
MEAN_SCORES = torch.tensor([0.8, 0.5, 0.2, 0.05, 0.01, 1e-3, 1e-6], dtype=torch.float64)


def mean_scores_oracle(*args):
    """With the running state given."""
    return peer_oracles.equilibrium_elements(
        *args[:3], {"mean_scores": MEAN_SCORES.tolist()}, args[4], momentum=1.0
    )


FORMULAS = {
    "acsl": Formula(
        partial(
            losses.adaptive_class_suppression_loss,
            frequency_groups=torch.tensor(["rcf".index(group) for group in STATS.groups]),
            background_ratios=(0.3, 0.5, 1.0),
        ),
        partial(peer_oracles.acsl_elements, ratios=(0.3, 0.5, 1.0)),
        K + 1,
        {"score_threshold": 0.0, "background_ratios": (1.0, 1.0, 1.0)},
        oracles.sigmoid_elements,
        num_draws=3,
    ),
    "droploss": Formula(
        partial(losses.drop_loss, is_tail=IS_TAIL),
        partial(peer_oracles.drop_loss_elements, threshold=LAMBDA),
        K,
        {"is_tail": NO_TAIL},
        oracles.sigmoid_elements,
        num_draws=K,
    ),
    "gol": Formula(
        partial(losses.gumbel_optimised_loss, is_tail=IS_TAIL),
        partial(peer_oracles.gumbel_optimised_elements, threshold=LAMBDA),
        K,
        {"is_tail": NO_TAIL},
        peer_oracles.gumbel_elements,
        num_draws=K,
    ),
    "loce": Formula(
        partial(losses.equilibrium_loss, mean_scores=MEAN_SCORES),
        mean_scores_oracle,
        K + 1,
        {"mean_scores": torch.full((K,), 0.3), "background_score": 0.3},
        oracles.softmax_elements,
    ),
    "ecm": Formula(
        partial(
            losses.effective_class_margin_loss,
            shifts=losses.effective_class_margin_shifts(torch.tensor(COUNTS)),
            element_weights=losses.effective_class_margin_weights(torch.tensor(COUNTS)),
        ),
        peer_oracles.ecm_elements,
        K + 1,
        {"shifts": torch.zeros(K + 1), "element_weights": torch.ones(K + 1)},
        peer_oracles.sigmoid_of_twice_the_logits_elements,
    ),
    "bags": Formula(
        partial(losses.group_softmax_loss, class_groups=GROUPS, beta=2.0),
        partial(peer_oracles.bags_elements, beta=2.0),
        K + 6,
        {"class_groups": torch.zeros_like(GROUPS), "beta": 1e9},
        peer_oracles.two_softmaxes_elements,
        num_draws=4,
    ),
}


@pytest.fixture(params=FORMULAS)
def formula(request):
    return FORMULAS[request.param]


def with_draws(formula, num_rows=NUM_ROWS):
    return {"draws": draws_of(formula.num_draws, num_rows)} if formula.num_draws else {}


def expected_elements(formula, oracle, logits, gt, draws):
    bound = {"draws": draws["draws"].tolist()} if draws else {}
    return oracle(logits.tolist(), gt.tolist(), STATS, {}, None, **bound)


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_elements_agree_with_the_oracle(formula, scale):
    logits, gt = batch(formula.num_logits, scale=scale)
    draws = with_draws(formula)
    actual = formula.loss(logits, gt, **draws, reduction="none")
    expected = torch.tensor(
        expected_elements(formula, formula.oracle, logits, gt, draws), dtype=torch.float64
    )
    torch.testing.assert_close(actual, expected.view(actual.shape), rtol=RTOL, atol=1e-13)


def test_limiting_case(formula):
    logits, gt = batch(formula.num_logits)
    expected = formula.limit_oracle(logits.tolist(), gt.tolist(), STATS, {}, None)
    actual = formula.loss(logits, gt, **formula.limit, reduction="sum")
    assert actual.item() == pytest.approx(math.fsum(map(math.fsum, expected)), rel=RTOL)


def test_gradient_equals_finite_differences(formula):
    logits, gt = batch(formula.num_logits, num_rows=13)
    draws = with_draws(formula, 13)
    assert gradcheck(lambda x: formula.loss(x, gt, **draws), logits.requires_grad_())


def test_reductions_are_consistent(formula):
    logits, gt = batch(formula.num_logits)
    draws = with_draws(formula)
    elements = formula.loss(logits, gt, **draws, reduction="none")
    torch.testing.assert_close(
        formula.loss(logits, gt, **draws, reduction="sum"), elements.sum(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        formula.loss(logits, gt, **draws), elements.sum() / len(gt), rtol=1e-12, atol=0
    )


def test_empty_batch_gives_a_zero_that_backpropagates(formula):
    logits = torch.zeros(0, formula.num_logits, requires_grad=True)
    value = formula.loss(logits, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == logits.shape


def test_all_background_batch_is_finite_and_pushes_no_class_up(formula):
    logits, _ = batch(formula.num_logits)
    gt = torch.full((len(logits),), K)
    loss = formula.loss(logits.requires_grad_(), gt)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert (logits.grad[:, :K] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite_in_value_and_gradient(formula, dtype):
    largest = torch.finfo(torch.float16).max
    for extreme in (largest, -largest, 0.0):
        logits = torch.full((K + 1, formula.num_logits), extreme, dtype=dtype, requires_grad=True)
        value = formula.loss(logits, torch.arange(K + 1))
        value.backward()
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert logits.grad.isfinite().all()
        assert logits.grad.dtype == dtype


def test_float32_agrees_with_float64(formula):
    logits, gt = batch(formula.num_logits, scale=3.0)
    draws = with_draws(formula)
    single = formula.loss(logits.float(), gt, **draws).item()
    assert single == pytest.approx(formula.loss(logits, gt, **draws).item(), rel=1e-5)


def test_inputs_are_left_unchanged(formula):
    logits, gt = batch(formula.num_logits)
    draws = with_draws(formula)
    arguments = {
        "logits": logits,
        "gt_classes": gt,
        **getattr(formula.loss, "keywords", {}),
        **draws,
    }
    tensors = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    before = {name: x.clone() for name, x in tensors.items()}
    formula.loss(logits, gt, **draws)
    for name, x in tensors.items():
        assert torch.equal(x, before[name])


def test_draws_come_from_the_seed(formula):
    logits, gt = batch(formula.num_logits)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(formula.loss(logits, gt))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2]) == (formula.num_draws == 0)


@pytest.mark.parametrize("tail_rows, expected", [(0, 1.0), (3, 0.7), (10, 0.0)])
def test_background_of_the_tail_is_dropped_with_the_rate_of_other_objects(tail_rows, expected):
    num_background = 6000
    gt = torch.tensor([K - 1] * tail_rows + [0] * (10 - tail_rows) + [K] * num_background)
    torch.manual_seed(0)
    elements = losses.drop_loss(torch.zeros(len(gt), K), gt, IS_TAIL, reduction="none")
    background = elements[10:, IS_TAIL]
    dropped = (background == 0).float().mean(dim=0)
    torch.testing.assert_close(dropped, torch.full_like(dropped, expected), rtol=0, atol=0.03)
    assert (elements[:, ~IS_TAIL] > 0).all()
    assert (elements[gt < K][:, IS_TAIL].sum(1) > 0).sum() == tail_rows


def test_acsl_suppresses_by_its_part_of_the_background_rounded_down():
    """The authors' parts of 205 rows: 2, 20 and all."""
    groups = torch.tensor([2, 2, 1, 0, 0, 0, 0])
    gt = torch.tensor([0] * 5 + [K] * 205)
    torch.manual_seed(0)
    elements = losses.adaptive_class_suppression_loss(
        torch.zeros(len(gt), K + 1), gt, groups, reduction="none"
    )
    suppressed = (elements > 0)[5:].sum(0).tolist()
    assert suppressed == [205, 205, 20, 2, 2, 2, 2, 205]
    assert torch.equal((elements > 0)[:5], torch.arange(K + 1).expand(5, -1) == 0)


def test_acsl_of_a_foreground_row_suppresses_the_background_too_only_if_confused():
    logits = torch.tensor([[0.0] * K + [score] for score in (0.8, 0.9)])
    assert logits[:, -1].sigmoid().lt(torch.tensor([0.7, 0.72])).tolist() == [True, True]
    elements = losses.adaptive_class_suppression_loss(
        logits, torch.tensor([0, 0]), torch.zeros(K, dtype=torch.int64), reduction="none"
    )
    assert (elements[:, -1] > 0).tolist() == [False, True]


def test_bags_without_a_member_in_the_batch_leaves_a_group_alone():
    logits, _ = batch(K + 6)
    gt = torch.full((len(logits),), 0)  # of the last group
    losses.group_softmax_loss(logits.requires_grad_(), gt, GROUPS).backward()
    others = GROUPS != GROUPS[0]
    assert (logits.grad[:, :K][:, others] == 0).all()
    assert (logits.grad[:, K : K + 3] == 0).all()
    assert (logits.grad[:, K + 3 :] != 0).all()


@pytest.mark.parametrize("beta, expected", [(0.0, 2), (1.5, 5), (8.0, 18), (100.0, 42)])
def test_bags_trains_a_group_on_beta_times_as_many_others(beta, expected):
    gt = torch.tensor([2, 2] + [K] * 30 + [0] * 10)
    logits = torch.zeros(len(gt), K + 6, requires_grad=True)
    losses.group_softmax_loss(logits, gt, GROUPS, beta=beta).backward()
    assert (logits.grad[:, 2] != 0).sum() == expected


def test_groups_are_of_the_papers_counts():
    counts = torch.tensor([0, 1, 9, 10, 99, 100, 999, 1000, 10**6])
    groups = losses.instance_count_groups(counts)
    assert groups.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert losses.instance_count_groups(counts, ()).tolist() == [0] * len(counts)


def test_ecm_of_a_class_as_frequent_as_its_background_has_no_margin():
    counts = torch.tensor([123])
    shifts = losses.effective_class_margin_shifts(counts, background_ratio=1.0)
    weights = losses.effective_class_margin_weights(counts, background_ratio=1.0)
    assert shifts.tolist() == [0, 0]
    assert weights.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-12)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_ecm_constants_are_finite_and_rarer_classes_have_lower_shifts_and_higher_weights(counts):
    counts = torch.tensor(counts).sort(descending=True).values
    shifts = losses.effective_class_margin_shifts(counts)
    weights = losses.effective_class_margin_weights(counts)
    assert shifts.shape == weights.shape == (len(counts) + 1,)
    assert shifts.isfinite().all()
    assert (shifts[:-1].diff() <= 0).all()
    assert ((weights > 0) & (weights < 1)).all()
    assert (weights[:-1].diff() >= -1e-12).all()


def test_equilibrium_scores_move_towards_the_batch_and_only_for_its_classes():
    logits, _ = batch(K + 1, num_rows=6)
    gt = torch.tensor([2, 2, 2, 5, K, K])
    state = {"mean_scores": MEAN_SCORES}
    sums = losses.equilibrium_observe(logits, gt, MEAN_SCORES)
    after = losses.equilibrium_advance(state, sums, momentum=0.75)["mean_scores"]
    probs = logits.softmax(1)
    expected = MEAN_SCORES.clone()
    expected[2] = 0.75 * expected[2] + 0.25 * probs[:3, 2].mean()
    expected[5] = 0.75 * expected[5] + 0.25 * probs[3, 5]
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=0)
    unmoved = torch.ones(K, dtype=torch.bool)
    unmoved[[2, 5]] = False
    assert torch.equal(after[unmoved], MEAN_SCORES[unmoved])


def test_equilibrium_sums_of_two_processes_add_up_to_one():
    logits, gt = batch(K + 1)
    whole = losses.equilibrium_observe(logits, gt, MEAN_SCORES)
    halves = [
        losses.equilibrium_observe(logits[rows], gt[rows], MEAN_SCORES)
        for rows in (slice(0, 11), slice(11, None))
    ]
    for name, total in whole.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], total, rtol=1e-12, atol=0)


def test_equilibrium_of_a_class_that_is_never_recognised_is_finite():
    logits = torch.zeros(1, K + 1, requires_grad=True)
    loss = losses.equilibrium_loss(logits, torch.tensor([0]), torch.zeros(K))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_gumbel_loss_is_the_cross_entropy_of_the_gumbel_probabilities():
    logits, gt = batch(K, scale=1.0)
    probs = GUMBEL.probs(logits)[:, :K].double()
    targets = losses.one_hot_targets(gt, probs)
    expected = torch.nn.functional.binary_cross_entropy(probs, targets, reduction="sum")
    actual = losses.gumbel_optimised_loss(logits, gt, NO_TAIL, reduction="sum")
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gumbel_starts_at_the_prior_and_has_a_background_column():
    bias = GUMBEL.initial_bias(K, 0.01)
    assert GUMBEL.num_logits(K) == K
    torch.testing.assert_close(GUMBEL.probs(bias[None])[0, :K], torch.full((K,), 0.01))
    assert GUMBEL.probs(bias[None])[0, K] == 0


def test_acsl_scores_classes_beside_the_background_and_ecm_against_it():
    logits, _ = batch(K + 1)
    probs = logits.float().sigmoid()
    torch.testing.assert_close(SIGMOID_BESIDE_BACKGROUND.probs(logits), probs)
    gated = torch.cat([probs[:, :K] * (1 - probs[:, K:]), probs[:, K:]], dim=1)
    torch.testing.assert_close(SIGMOID_WITH_BACKGROUND.probs(logits), gated)


def test_group_softmax_multiplies_the_object_and_the_class_in_its_group():
    activation = GroupSoftmax(GROUPS, 4)
    logits, _ = batch(activation.num_logits(K))
    probs = activation.probs(logits)
    for row, actual in zip(logits, probs, strict=True):
        is_object, is_background = row[-2:].softmax(0).tolist()
        expected = [0.0] * K
        for group in range(4):
            classes = [j for j in range(K) if GROUPS[j] == group]
            in_group = row[[*classes, K + group]].softmax(0).tolist()
            for j, prob in zip(classes, in_group, strict=False):
                expected[j] = is_object * prob
        assert actual.tolist() == pytest.approx([*expected, is_background], rel=1e-5)


def test_group_softmax_without_statistics_takes_its_groups_from_a_checkpoint():
    trained = GroupSoftmax(GROUPS, 4)
    fresh = GroupSoftmax(torch.full((K,), -1), 4)
    logits, _ = batch(trained.num_logits(K))
    with pytest.raises(InputError, match="STATS_FILE"):
        fresh.probs(logits)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.probs(logits), trained.probs(logits))
