"""What the Meta Sampler is for: Balanced Softmax on class-balanced draws balances twice.

Ten Gaussian classes with a long tail, a linear classifier, five seeds. The tilt is the share of
predictions that fall on the three rarest classes, on a balanced test set, over their fair share.
"""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from balms_det.bilevel import (
    class_log_weights,
    class_means,
    draw_classes,
    head_gradient,
    initial_rate_logits,
    log_weight_gradients,
    loss_and_logit_gradients,
    sampler_rate_gradient,
)
from balms_det.losses import balanced_softmax_loss

K, D, TAIL = 10, 4, 3
COUNTS = (1000 * 200 ** -(torch.arange(K) / (K - 1))).round().long()
SEEDS = range(5)
STEPS, BATCH = 2000, 64
T_95 = 2.776  # Student's t, 4 degrees of freedom, two-sided


class Gaussians:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.means = 1.5 * torch.randn(K, D, generator=self.generator)
        self.train = self.draw(COUNTS)
        self.test = self.draw(torch.full((K,), 500))
        self.starts = COUNTS.cumsum(0) - COUNTS

    def draw(self, counts):
        classes = torch.arange(K).repeat_interleave(counts)
        noise = torch.randn(len(classes), D, generator=self.generator)
        return self.means[classes] + noise, classes

    def batch_of(self, classes):
        """A training example of each of the given classes."""
        fractions = torch.rand(len(classes), generator=self.generator)
        return self.train[0][self.starts[classes] + (fractions * COUNTS[classes]).long()]


def tail_tilt(seed, *, initial_power, learn):
    """Train with Balanced Softmax; draw by rates that start as n_j^-power, 1 being balanced."""
    data = Gaussians(seed)
    head = torch.nn.Linear(D, K)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    rate_logits = initial_rate_logits(COUNTS, initial_power).float()
    adam = torch.optim.Adam([rate_logits], lr=0.01)
    for _ in range(STEPS):
        log_weights = class_log_weights(COUNTS.float(), rate_logits)
        classes, relaxed = draw_classes(log_weights, BATCH, generator=data.generator)
        features = data.batch_of(classes)
        logits = head(features)
        logits.retain_grad()
        optimizer.zero_grad()
        balanced_softmax_loss(classes, logits, COUNTS).backward()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        if not learn:
            continue
        with torch.no_grad():
            meta_classes = torch.randint(K, (BATCH,), generator=data.generator)
            meta_features = data.batch_of(meta_classes)
            _, errors = loss_and_logit_gradients(
                lambda z, y=meta_classes: F.cross_entropy(z, y), head(meta_features)
            )
            rows = log_weight_gradients(
                features, logits.grad, head_gradient(meta_features, errors), lr=lr
            )
            sums = torch.zeros(K).index_add(0, classes, rows)
            h = class_means(sums, torch.bincount(classes, minlength=K))
            rate_logits.grad = sampler_rate_gradient(h, relaxed, rate_logits)
            adam.step()
    features, _ = data.test
    predicted = head(features).argmax(1)
    return (predicted >= K - TAIL).float().mean().item() / (TAIL / K)


def interval(values):
    """Mean, and half the width of its 95 % confidence interval."""
    half = T_95 * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


@pytest.mark.slow
def test_learned_rates_undo_the_tilt_of_balancing_twice():
    fixed, learned = (
        [tail_tilt(seed, initial_power=1.0, learn=learn) for seed in SEEDS]
        for learn in (False, True)
    )
    from_even = [tail_tilt(seed, initial_power=0.0, learn=True) for seed in SEEDS]
    mean, half = interval(fixed)
    assert mean - half > 1.3, f"class-balanced sampling: {mean:.2f} +- {half:.2f}"
    for values in (learned, from_even):
        mean, half = interval(values)
        assert mean - half <= 1 <= mean + half or abs(mean - 1) < 0.1, f"{mean:.2f} +- {half:.2f}"
    mean, half = interval([a - b for a, b in zip(fixed, learned, strict=True)])
    assert mean - half > 0.3, f"class-balanced minus learned: {mean:.2f} +- {half:.2f}"
