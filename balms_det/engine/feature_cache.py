"""The features of a frozen detector, computed once and kept on disk.

A second stage that trains the classifier alone (MODEL.LONG_TAIL.DECOUPLE) asks the frozen rest for
the same features again and again. Here they are computed once for each training image, of all its
proposals, and any classifier, loss, sampler of images and seed can be trained on them: each time an
image is drawn, its proposals are sampled anew, as in training. An image comes with the same
augmentation each time, or with one of DECOUPLE.FEATURE_VIEWS of them, and features are rounded to
half precision; nothing else differs. (Keeping no more proposals than training samples costs a rare
class its variety, for its few images are drawn again and again.)

Names and shapes used throughout:
    N: images of the training set, in its order. V: views, each an augmentation.
    slot: view * N + image, in [0, V * N).
    R: most rows of a slot, DECOUPLE.FEATURE_ROWS. D: features of a row.

On disk, below the given folder, a folder named after a digest of all that the features depend on:
the frozen weights, the configuration of the model's other parts and of its input, the annotations,
and size and time of every picture. So features of another detector or of other data are never read.
A slot counts as there once its rows have reached the disk; an extraction that was cut short goes on
with the slots that are missing. Of several runs that ask for the same features at once, one
computes them and the others wait.
"""

import contextlib
import hashlib
import logging
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from detectron2.modeling.sampling import subsample_labels
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from balms_det.data import (
    LongTailDatasetMapper,
    MetaTrainingSampler,
    build_train_loader,
    with_index,
)
from balms_det.modeling import sampled_roi_features
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

Record = dict[str, Any]

VERSION = "2"  # of what is kept; another one is another cache
# What the features come from. Neither the classifier nor the box and mask predictors are among it.
_SOURCES = ("backbone.", "proposal_generator.", "roi_heads.box_head.")
_NOT_SOURCES = ("LONG_TAIL", "WEIGHTS", "DEVICE", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD")
_BATCHES_PER_FLUSH = 64
_NOT_YET = -1


@dataclass(frozen=True)
class FeatureCache:
    """Features and classes of the proposals of every training image.

    Attributes:
        features: float16 (V * N, R, D), memory-mapped, as are the others.
        classes: int32 (V * N, R), in [0, K].
        num_rows: int32 (V * N,), at most R; -1 for a slot that is not there yet.
        num_images: N.
    """

    features: np.memmap
    classes: np.memmap
    num_rows: np.memmap
    num_images: int

    @classmethod
    def open(
        cls, folder: Path, *, num_images: int, views: int, rows: int, width: int
    ) -> "FeatureCache":
        """Open the cache in `folder`, or start an empty one.

        Args:
            folder: named by :func:`cache_key`.
            num_images, views, rows, width: N, V, R and D.

        Raises:
            InputError: what is there is broken, or there is no room for it.
        """
        num_slots = views * num_images
        arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
            "features": (np.float16, (num_slots, rows, width)),
            "classes": (np.int32, (num_slots, rows)),
            "num_rows": (np.int32, (num_slots,)),
        }
        if comm.is_main_process() and not folder.exists():
            _create(folder, arrays)
        comm.synchronize()
        opened = {}
        for name, (dtype, shape) in arrays.items():
            path = folder / f"{name}.npy"
            try:
                np.load(path, mmap_mode="r")  # "r+" would lengthen a file that is too short.
                opened[name] = np.load(path, mmap_mode="r+")
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path}: this part of the feature cache cannot be read ({error}); remove "
                    f"{folder}, and the features are computed anew"
                ) from error
            assert (opened[name].dtype, opened[name].shape) == (dtype, shape), path
        return cls(num_images=num_images, **opened)

    def missing(self) -> np.ndarray:
        """Slots that are not there yet, ascending."""
        return np.flatnonzero(self.num_rows == _NOT_YET)

    def write(self, slots: Sequence[int], rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put features and classes into slots, which do not count before :meth:`commit`."""
        for slot, (features, classes) in zip(slots, rows, strict=True):
            half = features.half().cpu().numpy()
            if not np.isfinite(half).all():
                raise InputError(
                    f"the box head's features of image {slot % self.num_images} of the training "
                    "set are not finite in half precision, so that they cannot be cached; set "
                    "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE to '', or check MODEL.WEIGHTS"
                )
            self.features[slot, : len(half)] = half
            self.classes[slot, : len(half)] = classes.cpu().numpy()

    def commit(self, slots: Sequence[int], num_rows: Sequence[int]) -> None:
        """Let written slots count, once what they hold is on the disk."""
        self.features.flush()
        self.classes.flush()
        self.num_rows[list(slots)] = num_rows
        self.num_rows.flush()


@dataclass(frozen=True)
class SampleOfProposals:
    """A mapper for the train loader, from an image to a sample of its cached proposals.

    Attributes:
        cache: of all training images.
        size: proposals that training samples of an image, ROI_HEADS.BATCH_SIZE_PER_IMAGE.
        positive_fraction: of these, at most so many on an object.
        num_classes: K.
    """

    cache: FeatureCache
    size: int
    positive_fraction: float
    num_classes: int

    def __call__(self, record: Record) -> dict[str, Any]:
        """The sampled rows of one image, in a random one of its views.

        Args:
            record: with ``dataset_index``, the image's place in the training set.
        """
        cache, image = self.cache, record["dataset_index"]
        views = len(cache.num_rows) // cache.num_images
        view = int(torch.randint(views, ())) if views > 1 else 0
        slot = view * cache.num_images + image
        classes = torch.from_numpy(cache.classes[slot, : cache.num_rows[slot]].astype(np.int64))
        rows = torch.cat(
            subsample_labels(classes, self.size, self.positive_fraction, self.num_classes)
        )
        return {
            "dataset_index": image,
            "features": torch.from_numpy(np.asarray(cache.features[slot, rows.numpy()])),
            "gt_classes": classes[rows],
        }


def cached_features(cfg: Any, model: nn.Module, dataset: Sequence[Record]) -> FeatureCache:
    """The features of a training set, of which those that are missing are computed.

    Args:
        cfg: with MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE, the folder.
        model: with the weights of the first stage, not distributed, frozen but for its classifier.
        dataset: Detectron2's dictionaries of the training set.
    """
    decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
    folder = Path(decouple.FEATURE_CACHE) / cache_key(cfg, model, dataset)
    with _alone(folder):
        cache = FeatureCache.open(
            folder,
            num_images=len(dataset),
            views=decouple.FEATURE_VIEWS,
            rows=_rows_kept(cfg),
            width=model.roi_heads.box_predictor.cls_score.in_features,
        )
        missing = cache.missing()
        if len(missing):
            number = len(cache.num_rows)
            logger.info("Computing the features of %d of %d images", len(missing), number)
            comm.synchronize()  # before anyone fills one, all have seen the same slots missing
            was_training = model.training
            mine = missing[comm.get_rank() :: comm.get_world_size()].tolist()
            _extract(cfg, model.train(), dataset, cache, mine)
            model.train(was_training)
            comm.synchronize()
    assert not len(cache.missing()), folder
    logger.info("Training on the features in %s", folder)
    return cache


def build_feature_loader(
    cfg: Any,
    dataset: Sequence[Record],
    cache: FeatureCache,
    sampler: MetaTrainingSampler | None = None,
) -> DataLoader:
    """As :func:`balms_det.data.build_train_loader`, with features in the place of images."""
    heads = cfg.MODEL.ROI_HEADS
    mapper = SampleOfProposals(
        cache, heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.NUM_CLASSES
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # Reading a memory map takes less time than handing it over.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    return build_train_loader(cfg, dataset=with_index(dataset), mapper=mapper, sampler=sampler)


def cache_key(cfg: Any, model: nn.Module, dataset: Sequence[Record]) -> str:
    """A digest of everything that decides the features."""
    digest = hashlib.sha256(VERSION.encode())
    relevant = cfg.clone()
    relevant.defrost()
    for name in _NOT_SOURCES:
        relevant.MODEL.pop(name)
    digest.update(relevant.MODEL.dump().encode() + relevant.INPUT.dump().encode())
    digest.update(f"{cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_VIEWS} {_rows_kept(cfg)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(_SOURCES):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for record in dataset:
        digest.update(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY, default=str))
        with contextlib.suppress(OSError):  # The mapper will name the picture.
            status = os.stat(record["file_name"])
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _rows_kept(cfg: Any) -> int:
    """R: as many as the configuration says, or as there are proposals.

    The objects' own boxes come on top of the proposals, and then take the place of a few of the
    background.
    """
    most = max(cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)
    return int(cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS or most)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other run fills the cache meanwhile; the processes of this one go on together."""
    if not comm.is_main_process():
        yield
        return
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _create(folder: Path, arrays: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    """An empty cache, which is there whole or not at all; its files take up room as they fill."""
    try:
        size = sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in arrays.values()
        )
        free = shutil.disk_usage(folder.parent).free
        if size > free:
            raise InputError(
                f"{folder}: the features take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
                "free; make room, name another folder in MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE, "
                f"or keep fewer than {arrays['features'][1][1]} proposals of an image with "
                "MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS"
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir()
        for name, (dtype, shape) in arrays.items():
            array = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape)
            if name == "num_rows":
                array[:] = _NOT_YET
            array.flush()
        partial.replace(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder}: the feature cache cannot be written ({error.strerror}); name another folder in "
        "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE"
    )


def _extract(
    cfg: Any, model: nn.Module, dataset: Sequence[Record], cache: FeatureCache, slots: list[int]
) -> None:
    """Compute the given slots, with the same random numbers whoever does it."""
    loader = DataLoader(
        _Slots(dataset, LongTailDatasetMapper(cfg, is_train=True), slots),
        batch_size=max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator(),  # of its own, and not the one that training draws from
    )
    device_type = next(model.parameters()).device.type
    written: list[int] = []
    num_rows: list[int] = []
    position = 0
    with (
        EventStorage(),
        torch.autocast(device_type, enabled=cfg.SOLVER.AMP.ENABLED),
    ):
        for number, batch in enumerate(loader, start=1):
            of_batch = slots[position : position + len(batch)]
            position += len(batch)
            with _seeded(of_batch[0]):
                rows = sampled_roi_features(model, batch, at_most=_rows_kept(cfg))
            cache.write(of_batch, rows)
            written += of_batch
            num_rows += [len(classes) for _, classes in rows]
            if number % _BATCHES_PER_FLUSH == 0 or position == len(slots):
                cache.commit(written, num_rows)
                written, num_rows = [], []
                logger.info("Features of %d of %d images are there", position, len(slots))


class _Slots(Dataset[Any]):
    """The mapped images of slots, each augmented with random numbers of its own."""

    def __init__(self, dataset: Sequence[Record], mapper: Any, slots: Sequence[int]) -> None:
        self._dataset, self._mapper, self._slots = dataset, mapper, slots

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Any:
        slot = self._slots[index]
        with _seeded(slot):
            return self._mapper(self._dataset[slot % len(self._dataset)])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random generators, and afterwards leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
