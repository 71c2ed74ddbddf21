"""Which training examples make up each batch.

Every draw follows from the seed and the iteration alone, so that a run that is resumed goes on as
if it had never stopped.

Shapes and names used throughout:
    N: training examples. B: batch size. K: classes. D: features.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balms_det import bilevel
from balms_det.annotations import repeat_factors as rf
from balms_det.classification.long_tail import IntArray, class_images
from balms_det.classification.streams import Use, stream

# Exponent q of the probability n_j^q of drawing each class (arXiv:1910.09217, eq. 1).
CLASS_POWERS = {"class_balanced": 0.0, "square_root": 0.5}
SAMPLERS = ("shuffle", *CLASS_POWERS, "meta")


class ShuffleSampler:
    """Every example once in an epoch; batches run on across epochs."""

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, iteration: int) -> Tensor:
        """Return (B,) indices."""
        start, left = iteration * self._batch_size, self._batch_size
        parts = []
        while left > 0:
            epoch, position = divmod(start, self._num_examples)
            parts.append(self._order(epoch)[position : position + left])
            start, left = start + len(parts[-1]), left - len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            generator = stream(self._seed, Use.EPOCH, epoch)
            self._epoch = epoch, torch.randperm(self._num_examples, generator=generator)
        return self._epoch[1]


class ProbabilitySampler:
    """Draws examples by given probabilities, with replacement."""

    def __init__(self, probs: Tensor, batch_size: int, seed: int, use: Use = Use.BATCH) -> None:
        """
        Args:
            probs: (N,), summing to one.
            use: of the random numbers.
        """
        self._probs = probs
        self._batch_size = batch_size
        self._seed = seed
        self._use = use

    def draw(self, iteration: int) -> Tensor:
        """Return (B,) indices."""
        generator = stream(self._seed, self._use, iteration)
        return torch.multinomial(self._probs, self._batch_size, True, generator=generator)


def class_power_sampler(
    labels: IntArray,
    num_classes: int,
    power: float,
    batch_size: int,
    seed: int,
    use: Use = Use.BATCH,
) -> ProbabilitySampler:
    """Return a sampler that draws a class in proportion to n_j^power, then one of its examples."""
    images = class_images(labels, num_classes)
    probs = rf.image_probabilities(images, rf.class_probabilities(images, power))
    return ProbabilitySampler(torch.from_numpy(probs), batch_size, seed, use)


class MetaSampler(nn.Module):
    """Draws classes at rates that are learned on a class-balanced meta set (Meta Sampler).

    arXiv:2007.10740, section 3.4; the mathematics is :mod:`balms_det.bilevel`. The meta set is
    drawn from the training examples. The rates and the state of their optimizer are saved with
    the run.
    """

    rate_logits: nn.Parameter

    def __init__(self, labels: IntArray, num_classes: int, meta: Any, batch_size: int, seed: int):
        """
        Args:
            labels: (N,) of the training examples.
            meta: the SOLVER.META node.
            batch_size: of the draws.
        """
        super().__init__()
        images = class_images(labels, num_classes)
        self._image_index = torch.from_numpy(images.image_index)
        self._offsets = torch.from_numpy(images.offsets)
        self._class_counts = self._offsets.diff()
        self._batch_size = batch_size
        self._seed = seed
        self.meta_set = class_power_sampler(
            labels, num_classes, 0.0, meta.BATCH_SIZE, seed, Use.META_BATCH
        )
        initial = bilevel.initial_rate_logits(self._class_counts, meta.INITIAL_POWER)
        self.rate_logits = nn.Parameter(initial)
        self.optimizer = torch.optim.Adam([self.rate_logits], lr=meta.BASE_LR)
        self._temperature = meta.TEMPERATURE
        # Draws that are not trained on yet: workers that read files run ahead.
        self._relaxed = deque[Tensor]()

    @torch.no_grad()
    def draw(self, iteration: int) -> Tensor:
        """Return (B,) indices; what :meth:`update` needs of the draw is remembered until then."""
        generator = stream(self._seed, Use.BATCH, iteration)
        log_weights = bilevel.class_log_weights(self._class_counts.double(), self.rate_logits)
        classes, relaxed = bilevel.draw_classes(
            log_weights, self._batch_size, temperature=self._temperature, generator=generator
        )
        self._relaxed.append(relaxed)
        # In float64 a number below 1 times a count stays below the count.
        fractions = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        return self._image_index[
            self._offsets[classes] + (fractions * self._class_counts[classes]).long()
        ]

    @torch.no_grad()
    def update(
        self,
        head: nn.Linear,
        sgd: Mapping[str, Any],
        batch: tuple[Tensor, Tensor, Tensor],
        meta_batch: tuple[Tensor, Tensor],
        meta_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Move the rates towards those whose step would have made the meta loss smaller.

        Args:
            head: the classifier, after the step.
            sgd: of the step, "lr", "momentum" and "nesterov".
            batch: of the first :meth:`draw` that had no update, the (B, D) features, the (B, K)
                gradients of the training loss at the logits, and (B,) labels.
            meta_batch: (M, D) features and (M,) labels.
            meta_loss: ``meta_loss(logits, labels)``, a mean over rows.
        """
        features, row_gradients, labels = batch
        meta_features, meta_labels = meta_batch
        _, meta_row_gradients = bilevel.loss_and_logit_gradients(
            lambda logits: meta_loss(logits, meta_labels), head(meta_features)
        )
        per_draw = bilevel.log_weight_gradients(
            features,
            row_gradients,
            bilevel.head_gradient(meta_features, meta_row_gradients),
            lr=sgd["lr"],
            momentum=sgd["momentum"],
            nesterov=sgd["nesterov"],
        ).to(self.rate_logits)
        labels = labels.to(self.rate_logits.device)
        sums = torch.zeros_like(self.rate_logits).index_add_(0, labels, per_draw)
        self.rate_logits.grad = bilevel.sampler_rate_gradient(
            bilevel.class_means(sums, labels.bincount(minlength=len(sums))),
            self._relaxed.popleft(),
            self.rate_logits,
            temperature=self._temperature,
        )
        self.optimizer.step()


Sampler = ShuffleSampler | ProbabilitySampler | MetaSampler


def build_sampler(cfg: Any, labels: IntArray, num_classes: int) -> Sampler:
    """Return the sampler that SAMPLER, one of SAMPLERS, names."""
    batch_size, seed = cfg.SOLVER.BATCH_SIZE, cfg.SEED
    if cfg.SAMPLER == "shuffle":
        return ShuffleSampler(len(labels), batch_size, seed)
    if cfg.SAMPLER == "meta":
        return MetaSampler(labels, num_classes, cfg.SOLVER.META, batch_size, seed)
    power = CLASS_POWERS[cfg.SAMPLER]
    return class_power_sampler(labels, num_classes, power, batch_size, seed)
