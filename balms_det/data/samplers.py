"""Training samplers beside Detectron2's own, chosen by DATALOADER.SAMPLER_TRAIN.

Like Detectron2's they are infinite streams: every process computes the same one from a shared seed
and takes each world-size-th index of it.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from balms_det.annotations import repeat_factors as rf
from balms_det.annotations.repeat_factors import ClassImages, FloatArray
from balms_det.bilevel import choose_classes, class_log_weights, initial_rate_logits
from balms_det.data.cache import CachedDataset, CachedDatasets

logger = logging.getLogger(__name__)

# Drawn at a time: few calls into PyTorch, and little memory.
_DRAWS_PER_CHUNK = 4096
# A number for each class and draw.
_META_DRAWS_PER_CHUNK = 256


class ClassProbabilityTrainingSampler(Sampler[int]):
    """Draws a class, then uniformly one of the images that contain it, without end.

    Images without annotations are never drawn.
    """

    def __init__(
        self, images: ClassImages, class_probs: FloatArray, *, seed: int | None = None
    ) -> None:
        """
        Args:
            images: of the data set.
            class_probs: (K,) of the classes, zero for those without images; sums to one.
            seed: the same in all processes; by default a random one that they agree on.
        """
        self._image_index = torch.from_numpy(images.image_index)
        self._offsets = torch.from_numpy(images.offsets)
        self._class_probs = torch.from_numpy(class_probs)
        self._seed = comm.shared_random_seed() if seed is None else seed
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._indices(), self._rank, None, self._world_size)

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            classes = torch.multinomial(
                self._class_probs, _DRAWS_PER_CHUNK, replacement=True, generator=generator
            )
            first, counts = self._offsets[classes], self._offsets.diff()[classes]
            # In float64 a number below 1 times a count stays below the count.
            fractions = torch.rand(_DRAWS_PER_CHUNK, generator=generator, dtype=torch.float64)
            yield from self._image_index[first + (fractions * counts).long()].tolist()


@dataclass(frozen=True)
class Draw:
    """How the Meta Sampler came to an image.

    Attributes:
        index: of the image in the data set.
        drawn_class: the class that was drawn, and the image then among its images.
        relaxed: (K,) the relaxation of that choice, from :func:`balms_det.bilevel.choose_classes`.
    """

    index: int
    drawn_class: int
    relaxed: Tensor


class MetaTrainingSampler(Sampler[int]):
    """Draws an image in proportion to its rate, the mean of its classes' learned rates.

    The mean, so that equal rates draw every annotated image equally often, whatever the number of
    its classes; images without annotations are never drawn. To draw from the image's rates is to
    draw a class in proportion to its rate times the sum, over its images, of 1 / (classes of the
    image), and then one of its images in proportion to the latter; nothing here is of size K * N.

    It has to be iterated in the training process, where the rates are. A loader with workers asks
    for images a few batches before they are trained on: their draws have the rates of then, and
    wait here until :meth:`take`.
    """

    def __init__(
        self,
        images: ClassImages,
        rate_logits: Tensor,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> None:
        """
        Args:
            images: of the data set.
            rate_logits: (K,) psi, on the CPU. Whoever learns them changes them in place.
            temperature: T of the relaxation.
            seed: the same in all processes; by default a random one that they agree on.
        """
        if not len(images.image_index):
            raise rf.no_class_to_draw()
        classes = np.bincount(images.image_index, minlength=images.num_images)
        # The sum up to each (class, image) pair: float64 distinguishes a million of them.
        ends = np.concatenate([[0], np.cumsum(1 / classes[images.image_index])])
        self.rate_logits = rate_logits
        self._temperature = temperature
        self._image_index = images.image_index
        self._offsets = images.offsets
        self._pair_ends = ends
        self._class_starts = ends[images.offsets]
        self._class_masses = torch.from_numpy(np.diff(self._class_starts)).to(rate_logits)
        self._seed = comm.shared_random_seed() if seed is None else seed
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        self._start, self._resumed = 0, list[Draw]()
        self._position, self._pending = 0, list[Draw]()

    def __iter__(self) -> Iterator[int]:
        self._position, self._pending = self._start, []
        yield from map(self._remember, self._resumed)
        mine = itertools.islice(self._noise(self._start), self._rank, None, self._world_size)
        for gumbel, uniform in mine:
            # Each process takes one of every world-size draws of the common stream.
            self._position += self._world_size
            yield self._remember(self._draw(gumbel, uniform))

    def take(self, index: int) -> Draw:
        """Return the draw, no longer remembered, by which an image came to be trained on.

        Raises:
            KeyError: the image has not been drawn, or was taken as often as that.
        """
        for position, draw in enumerate(self._pending):
            if draw.index == index:
                return self._pending.pop(position)
        raise KeyError(index)

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the stream, draws that were not taken included.

        Of several processes each has its own of these, and a checkpoint only the main process's;
        all of them then leave out what they had drawn ahead.
        """
        pending = [asdict(draw) for draw in self._pending] if self._world_size == 1 else []
        return {"position": self._position, "pending": pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; it takes effect when iteration begins."""
        self._start = state["position"]
        self._resumed = [Draw(**draw) for draw in state["pending"]]

    def _remember(self, draw: Draw) -> int:
        self._pending.append(draw)
        return draw.index

    def _noise(self, start: int) -> Iterator[tuple[Tensor, float]]:
        """Yield, for each draw from the `start`-th, (1, K) Gumbel noise and a number in [0, 1)."""
        skipped = start % _META_DRAWS_PER_CHUNK
        for chunk in itertools.count(start // _META_DRAWS_PER_CHUNK):
            # A stream of its own for each chunk, so that none before it has to be drawn again.
            generator = np.random.default_rng([self._seed, chunk])
            shape = _META_DRAWS_PER_CHUNK, 1, len(self.rate_logits)
            gumbels = torch.from_numpy(generator.gumbel(size=shape)).to(self.rate_logits)
            uniforms = generator.random(_META_DRAWS_PER_CHUNK)
            yield from list(zip(gumbels, uniforms.tolist(), strict=True))[skipped:]
            skipped = 0

    def _draw(self, gumbel: Tensor, uniform: float) -> Draw:
        log_weights = class_log_weights(self._class_masses, self.rate_logits)
        chosen, relaxed = choose_classes(log_weights, gumbel, temperature=self._temperature)
        drawn = int(chosen)
        begin, end = self._class_starts[drawn : drawn + 2]
        pair = np.searchsorted(self._pair_ends, begin + uniform * (end - begin), side="right") - 1
        # Rounding must not lead to the next class.
        pair = min(pair, self._offsets[drawn + 1] - 1)
        return Draw(int(self._image_index[pair]), drawn, relaxed[0])


def _instance_aware_repeat_factor(cfg: Any, images: ClassImages, seed: int | None) -> Sampler[int]:
    factors = rf.class_repeat_factors(
        rf.instance_aware_frequency(images),
        cfg.DATALOADER.REPEAT_THRESHOLD,
        sqrt=cfg.DATALOADER.REPEAT_SQRT,
    )
    sampler: Sampler[int] = RepeatFactorTrainingSampler(
        _image_factors(images, factors, cfg.DATALOADER.REPEAT_THRESHOLD), seed=seed
    )
    return sampler


def _image_factors(images: ClassImages, class_factors: FloatArray, threshold: float) -> Tensor:
    """Return the repeat factor of each image, float32 (N,), and log their range.

    A threshold that repeats nothing is a warning, with one that would.
    """
    factors = rf.image_repeat_factors(images, class_factors)
    repeated = int((factors > 1).sum())
    if repeated:
        logger.info(
            "Repeat factors are 1 to %.3g, the mean is %.3g; above 1 for %d of %d images",
            factors.max(),
            factors.mean(),
            repeated,
            images.num_images,
        )
    else:
        logger.warning(
            "DATALOADER.REPEAT_THRESHOLD %g repeats no image: every class is in more of them; %.2g "
            "would repeat all but the most frequent third of the classes, as 0.001 does on LVIS",
            threshold,
            rf.advised_threshold(images.image_counts, images.num_images),
        )
    return torch.from_numpy(factors).float()


def _class_balanced(cfg: Any, images: ClassImages, seed: int | None) -> Sampler[int]:
    probs = rf.class_probabilities(images, power=0)
    return ClassProbabilityTrainingSampler(images, probs, seed=seed)


def _square_root(cfg: Any, images: ClassImages, seed: int | None) -> Sampler[int]:
    probs = rf.class_probabilities(images, power=0.5)
    return ClassProbabilityTrainingSampler(images, probs, seed=seed)


def _meta(cfg: Any, images: ClassImages, seed: int | None) -> Sampler[int]:
    counts = torch.from_numpy(images.image_counts)
    rate_logits = initial_rate_logits(counts, cfg.SOLVER.META.INITIAL_POWER)
    return MetaTrainingSampler(
        images, rate_logits.float(), temperature=cfg.SOLVER.META.TEMPERATURE, seed=seed
    )


SAMPLERS: dict[str, Callable[[Any, ClassImages, int | None], Sampler[int]]] = {
    "InstanceAwareRepeatFactorTrainingSampler": _instance_aware_repeat_factor,
    "ClassBalancedTrainingSampler": _class_balanced,
    "SquareRootTrainingSampler": _square_root,
    "MetaTrainingSampler": _meta,
}
# Those that Detectron2's loader makes itself.
DETECTRON2_SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def build_train_sampler(
    cfg: Any, dataset: Sequence[Mapping[str, Any]] | CachedDataset | CachedDatasets
) -> Sampler[int] | None:
    """Return the sampler that DATALOADER.SAMPLER_TRAIN names.

    Returns:
        None for those of Detectron2 that its loader makes, without looking at the annotations or,
        where they are not cached, by going through all dictionaries.

    Raises:
        InputError: the data set's classes are not the model's, or it has no annotation to draw by.
    """
    name, num_classes = cfg.DATALOADER.SAMPLER_TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if name in SAMPLERS:
        logger.info("Using training sampler %s", name)
        images = ClassImages.from_dataset_dicts(dataset, num_classes)
        # A negative SEED asks for another stream in each run.
        return SAMPLERS[name](cfg, images, cfg.SEED if cfg.SEED >= 0 else None)
    if name == "RepeatFactorTrainingSampler" and not isinstance(dataset, list):
        logger.info("Using training sampler %s", name)
        # Detectron2 counts crowds for this, and its sampler takes negative seeds as they are.
        pairs = dataset.class_pairs(crowds=True)
        images = ClassImages.from_pairs(*pairs, len(dataset), num_classes)
        factors = rf.class_repeat_factors(
            rf.image_frequency(images),
            cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
        per_image = _image_factors(images, factors, cfg.DATALOADER.REPEAT_THRESHOLD)
        return RepeatFactorTrainingSampler(per_image, seed=cfg.SEED)
    return None
