"""The closed form against double backpropagation and finite differences, limits and extremes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from balms_det import losses
from balms_det.bilevel import (
    class_log_weights,
    class_means,
    draw_classes,
    head_gradient,
    initial_rate_logits,
    log_weight_gradients,
    loss_and_logit_gradients,
    reweighter_rate_gradient,
    reweighter_weights,
    sampler_rate_gradient,
    sgd_step,
)

K, D, R, NUM_META, B = 5, 7, 24, 16, 8
COUNTS = torch.tensor([900, 120, 30, 4, 1])
MASSES = torch.tensor([9, 6, 3, 2, 1])  # of the sampler: every class is drawn, or few would tell
LR, WEIGHT_DECAY = 0.7, 0.01


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def softmax_shift(loss):
    shifts = losses.balanced_softmax_shifts(COUNTS)
    return lambda logits, y, reduction: loss(logits, y, shifts, reduction=reduction)


def sigmoid_margins(rows):
    margins = losses.balanced_sigmoid_margins(COUNTS)
    return lambda logits, y, reduction: losses.balanced_sigmoid_loss(
        logits, y, margins, rows=rows, reduction=reduction
    )


# Training loss with a row loss, plain loss, and the number of logits.
LOSSES = {
    "softmax": (losses.softmax_loss, losses.softmax_loss, K + 1),
    "balanced_softmax": (softmax_shift(losses.shifted_softmax_loss), losses.softmax_loss, K + 1),
    "sigmoid": (losses.sigmoid_loss, losses.sigmoid_loss, K),
    "balanced_sigmoid": (sigmoid_margins("foreground"), losses.sigmoid_loss, K),
    "balanced_sigmoid_all": (sigmoid_margins("all"), losses.sigmoid_loss, K),
}
SGD = {
    "plain": {},
    "weight_decay": {"weight_decay": WEIGHT_DECAY},
    "momentum": {"momentum": 0.9, "weight_decay": WEIGHT_DECAY},
    "nesterov": {"momentum": 0.9, "weight_decay": WEIGHT_DECAY, "nesterov": True},
}


class Problem:
    """A training batch, a meta batch, a head with a past, and rates."""

    def __init__(self, name="balanced_softmax", sgd="nesterov", *, scale=1.0, gt_classes=None):
        generator = torch.Generator().manual_seed(3)

        def randn(*shape):
            return torch.randn(*shape, generator=generator)

        self.loss, self.plain, num_logits = LOSSES[name]
        self.sgd = {"lr": LR, **SGD[sgd]}
        if gt_classes is None:
            gt_classes = torch.randint(K + 1, (R,), generator=generator)
        self.gt_classes = gt_classes
        self.features = scale * randn(len(gt_classes), D)
        self.meta_classes = torch.randint(K + 1, (NUM_META,), generator=generator)
        self.meta_features = scale * randn(NUM_META, D)
        self.theta = [randn(num_logits, D), randn(num_logits)]
        self.buffers = [randn(num_logits, D), randn(num_logits)]
        self.rate_logits = randn(K)
        # Draws are images: three RoIs each, of any class; the draws' own classes are apart.
        self.draw_of_row = torch.arange(len(gt_classes)) // 3
        self.noise = randn(B, K)

    def row_losses(self, logits):
        rows = self.loss(logits, self.gt_classes, reduction="none")
        return rows if rows.dim() == 1 else rows.sum(1)

    def meta_loss(self, training_loss_of):
        """M at theta', as a function that autograd differentiates through the SGD step."""
        theta = [t.clone().requires_grad_() for t in self.theta]
        loss = training_loss_of(self.row_losses(F.linear(self.features, *theta)))
        gradients = torch.autograd.grad(loss, theta, create_graph=True)
        stepped = [
            sgd_step(t, g, v, **self.sgd)
            for t, g, v in zip(theta, gradients, self.buffers, strict=True)
        ]
        logits = F.linear(self.meta_features, *stepped)
        return self.plain(logits, self.meta_classes, reduction="proposals")

    def log_weight_gradients(self, weights):
        """What the package computes for the training loss with these row weights."""
        logits = F.linear(self.features, *self.theta)
        num_rows = max(len(logits), 1)
        _, row_gradients = loss_and_logit_gradients(
            lambda z: (self.row_losses(z) * weights).sum() / num_rows, logits
        )
        gradients = head_gradient(self.features, row_gradients)
        stepped = [
            sgd_step(t, g, v, **self.sgd)
            for t, g, v in zip(self.theta, gradients, self.buffers, strict=True)
        ]
        _, meta_errors = loss_and_logit_gradients(
            lambda z: self.plain(z, self.meta_classes, reduction="proposals"),
            F.linear(self.meta_features, *stepped),
        )
        meta_gradient = head_gradient(self.meta_features, meta_errors)
        step = {k: v for k, v in self.sgd.items() if k != "weight_decay"}
        return log_weight_gradients(self.features, row_gradients, meta_gradient, **step)

    # The reweighter.

    def reweighted(self, rate_logits):
        """M as a function of psi, written with the rates themselves."""
        rates = rate_logits.sigmoid()
        weights = []
        foreground = self.gt_classes < K
        for y in self.gt_classes.tolist():
            mean = rates[self.gt_classes[foreground]].mean()
            weights.append(rates[y] / mean if y < K else rates.new_ones(()))
        weights = torch.stack(weights) if weights else rates.new_zeros(0)
        return self.meta_loss(lambda rows: (rows * weights).sum() / max(len(rows), 1))

    def reweighter_gradient(self):
        weights = reweighter_weights(self.gt_classes, self.rate_logits)
        gradients = self.log_weight_gradients(weights)
        return reweighter_rate_gradient(gradients, self.gt_classes, self.rate_logits)

    # The sampler.

    def choices(self, rate_logits, temperature):
        perturbed = MASSES.log() + rate_logits.sigmoid().log() + self.noise
        return perturbed.argmax(1), (perturbed / temperature).softmax(1)

    def sampled(self, rate_logits, temperature):
        """M with the choices one-hot at the problem's own psi, and moving like the relaxation."""
        drawn, at_psi = self.choices(self.rate_logits, temperature)
        choice = F.one_hot(drawn, K) + self.choices(rate_logits, temperature)[1] - at_psi

        def training_loss(rows):
            draws = rows.new_zeros(B).index_add(0, self.draw_of_row, rows) / len(rows)
            by_class = [draws[drawn == j] if (drawn == j).any() else draws for j in range(K)]
            return (choice * torch.stack([d.mean() for d in by_class])).sum()

        return self.meta_loss(training_loss)

    def sampler_gradient(self, temperature):
        gradients = self.log_weight_gradients(torch.ones(R))
        draws = torch.zeros(B).index_add(0, self.draw_of_row, gradients)
        drawn, relaxed = self.choices(self.rate_logits, temperature)
        sums = torch.zeros(K).index_add(0, drawn, draws)
        h = class_means(sums, torch.bincount(drawn, minlength=K))
        return sampler_rate_gradient(h, relaxed, self.rate_logits, temperature=temperature)


def double_backpropagation(function, rate_logits):
    leaf = rate_logits.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def finite_differences(function, rate_logits, h=1e-4):
    directions = h * torch.eye(len(rate_logits))
    return torch.stack(
        [(function(rate_logits + d) - function(rate_logits - d)).detach() / (2 * h)
         for d in directions]
    )  # fmt: skip


def assert_close(actual, expected, rtol=1e-6):
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    assert (actual - expected).abs().max() <= rtol * scale


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


@pytest.fixture(params=SGD)
def sgd(request):
    return request.param


def test_step_is_that_of_torchs_sgd(sgd):
    problem = Problem(sgd=sgd)
    parameter = torch.nn.Parameter(problem.theta[0].clone())
    optimizer = torch.optim.SGD([parameter], **problem.sgd)
    for step in range(4):
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        state = optimizer.state[parameter].get("momentum_buffer")
        expected = sgd_step(parameter.detach(), gradient, state, **problem.sgd)
        parameter.grad = gradient
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-14, atol=1e-14)


def test_step_changes_nothing():
    tensors = [torch.ones(3), torch.ones(3), torch.ones(3)]
    sgd_step(*tensors, lr=1.0, momentum=0.9, weight_decay=0.1, nesterov=True)
    assert all(torch.equal(t, torch.ones(3)) for t in tensors)


def test_reweighter_agrees_with_double_backpropagation(name, sgd):
    problem = Problem(name, sgd)
    expected = double_backpropagation(problem.reweighted, problem.rate_logits)
    assert_close(problem.reweighter_gradient(), expected, rtol=1e-12)


def test_reweighter_agrees_with_finite_differences(name, sgd):
    problem = Problem(name, sgd)
    assert_close(
        problem.reweighter_gradient(), finite_differences(problem.reweighted, problem.rate_logits)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampler_agrees_with_double_backpropagation(name, sgd, temperature):
    problem = Problem(name, sgd)
    expected = double_backpropagation(
        lambda psi: problem.sampled(psi, temperature), problem.rate_logits
    )
    assert_close(problem.sampler_gradient(temperature), expected, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampler_agrees_with_finite_differences(name, sgd, temperature):
    problem = Problem(name, sgd)
    expected = finite_differences(
        lambda psi: problem.sampled(psi, temperature), problem.rate_logits
    )
    assert_close(problem.sampler_gradient(temperature), expected)


def test_huge_logits_and_rates_stay_finite(name):
    problem = Problem(name, scale=1e4)
    expected = double_backpropagation(problem.reweighted, problem.rate_logits)
    assert_close(problem.reweighter_gradient(), expected, rtol=1e-10)
    problem.rate_logits = torch.tensor([800.0, -800.0, 0.0, 40.0, -40.0])
    assert problem.reweighter_gradient().isfinite().all()
    assert problem.sampler_gradient(1.0).isfinite().all()


@pytest.mark.parametrize(
    "gt_classes",
    [[], [K, K], [2], [2, 2, 2]],
    ids=["empty", "background only", "one row", "one class"],
)
def test_rows_that_leave_the_reweighter_no_choice_give_no_gradient(name, gt_classes):
    problem = Problem(name, gt_classes=torch.tensor(gt_classes, dtype=torch.int64))
    weights = reweighter_weights(problem.gt_classes, problem.rate_logits)
    torch.testing.assert_close(weights, torch.ones(len(gt_classes)))
    gradient = problem.reweighter_gradient()
    torch.testing.assert_close(gradient, torch.zeros(K), rtol=0, atol=1e-14)


def test_class_without_rows_gets_no_gradient_from_the_reweighter(name):
    problem = Problem(name, gt_classes=torch.tensor([0, 1, 1, 2, K, 0]))
    gradient = problem.reweighter_gradient()
    assert (gradient[:3] != 0).all()
    assert torch.equal(gradient[3:], torch.zeros(2))


def test_reweighter_keeps_the_mean_of_foreground_weights():
    problem = Problem()
    weights = reweighter_weights(problem.gt_classes, problem.rate_logits)
    foreground = problem.gt_classes < K
    assert (weights > 0).all()
    assert weights[foreground].mean() == pytest.approx(1)
    assert (weights[~foreground] == 1).all()
    # Rates so small that they underflow still differ by their ratio.
    tiny = reweighter_weights(torch.tensor([0, 1]), torch.tensor([-900.0, -900 + math.log(3)]))
    torch.testing.assert_close(tiny, torch.tensor([0.5, 1.5]))


def test_what_all_draws_have_in_common_moves_no_rate():
    relaxed = draw_classes(class_log_weights(COUNTS, torch.zeros(K)), 64)[1]
    h = class_means(torch.tensor([6.0, 2.0, 0.0, 0.0, 0.0]), torch.tensor([3, 1, 0, 0, 0]))
    assert torch.equal(h, torch.full((K,), 2.0))
    gradient = sampler_rate_gradient(h, relaxed, torch.zeros(K))
    torch.testing.assert_close(gradient, torch.zeros(K), rtol=0, atol=1e-14)


def test_class_means_of_no_draws_are_zero():
    assert torch.equal(class_means(torch.zeros(3), torch.zeros(3)), torch.zeros(3))


def test_class_means_are_the_same_of_sums_and_of_their_mean_over_processes():
    sums, counts = torch.tensor([6.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])
    assert torch.equal(class_means(sums / 8, counts / 8), class_means(sums, counts))


def test_gradients_of_parts_of_a_batch_add_up():
    relaxed = draw_classes(class_log_weights(COUNTS, torch.zeros(K)), 6)[1]
    h = torch.randn(K)
    whole = sampler_rate_gradient(h, relaxed, torch.zeros(K))
    parts = [sampler_rate_gradient(h, part, torch.zeros(K)) for part in relaxed.split([4, 2, 0])]
    torch.testing.assert_close(sum(parts), whole)


def test_draws_have_the_probabilities_of_drawing_among_all_examples():
    """An example has the probability sigma(psi_y) / sum, here drawn over N one by one."""
    rate_logits = torch.tensor([-1.0, 0.0, 0.5, 2.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    number = 200_000
    drawn, _ = draw_classes(class_log_weights(COUNTS, rate_logits), number, generator=generator)
    examples = torch.arange(K).repeat_interleave(COUNTS)
    example_probs = rate_logits.sigmoid()[examples] / rate_logits.sigmoid()[examples].sum()
    probs = torch.zeros(K).index_add(0, examples, example_probs)
    observed = torch.bincount(drawn, minlength=K) / number
    assert ((observed - probs).abs() <= 5 * (probs * (1 - probs) / number).sqrt()).all()


def test_relaxation_is_largest_where_it_was_drawn_and_sharp_at_low_temperature():
    log_weights = class_log_weights(COUNTS, torch.zeros(K))
    for temperature in (5.0, 1.0, 1e-3):
        drawn, relaxed = draw_classes(log_weights, 100, temperature=temperature)
        assert torch.equal(relaxed.argmax(1), drawn)
        torch.testing.assert_close(relaxed.sum(1), torch.ones(100))
    assert relaxed.max(1).values.median() > 0.999


def test_class_without_examples_is_never_drawn_and_its_rate_never_moves():
    masses = torch.tensor([3.0, 0.0, 1.0])
    log_weights = class_log_weights(masses, torch.tensor([0.0, 50.0, 0.0]))
    drawn, relaxed = draw_classes(log_weights, 1000)
    assert set(drawn.tolist()) == {0, 2}
    gradient = sampler_rate_gradient(torch.tensor([1.0, 5.0, 2.0]), relaxed, torch.zeros(3))
    assert gradient.isfinite().all() and gradient[1] == 0 and gradient[2] != 0


def test_draws_follow_their_generator():
    log_weights = class_log_weights(COUNTS, torch.zeros(K))
    first, again, other = (
        draw_classes(log_weights, 50, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert all(itertools.starmap(torch.equal, zip(first, again, strict=True)))
    assert not torch.equal(first[1], other[1])


def test_initial_rates_are_one_half_or_fall_with_the_counts():
    assert torch.equal(initial_rate_logits(COUNTS), torch.zeros(K))
    rates = initial_rate_logits(COUNTS, 0.3).sigmoid()
    assert (rates.diff() > 0).all()
    assert rates[0] + rates[-1] == pytest.approx(1)
    assert rates[1] / rates[2] == pytest.approx((30 / 120) ** 0.3)
    assert initial_rate_logits(torch.tensor([5, 0, 1]), 1.0).isfinite().all()


def test_single_precision_is_close():
    double, single = Problem(), Problem()
    for key in ("theta", "buffers", "features", "meta_features", "rate_logits"):
        value = getattr(double, key)
        as_single = [t.float() for t in value] if isinstance(value, list) else value.float()
        setattr(single, key, as_single)
    torch.set_default_dtype(torch.float32)
    gradient = single.reweighter_gradient()
    assert gradient.dtype == torch.float32
    assert_close(gradient.double(), double.reweighter_gradient(), rtol=1e-5)


def test_nothing_of_rows_times_classes_times_features_is_made():
    rows, classes, depth = 512, 600, 512
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    features, errors = torch.randn(rows, depth), torch.randn(rows, classes)
    with Sizes():
        gradient = head_gradient(features, errors)
        log_weight_gradients(features, errors, gradient, lr=1.0)
    assert 0 < largest <= max(rows * classes, classes * depth, rows * depth)
