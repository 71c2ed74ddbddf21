"""Computing the features that are missing from a cache, and the digest that names it.

Names and shapes as in :mod:`balms_det.engine.feature_cache`.
"""

import contextlib
import hashlib
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader, Dataset

from balms_det.data import LongTailDatasetMapper
from balms_det.engine.feature_cache.store import FeatureCache, locked
from balms_det.modeling import sampled_roi_features

logger = logging.getLogger(__name__)

Record = dict[str, Any]

VERSION = "2"  # of what is kept; another one is another cache
# Modules that the features come from: neither the classifier nor the box and mask predictors.
_SOURCES = ("backbone.", "proposal_generator.", "roi_heads.box_head.")
_NOT_SOURCES = ("LONG_TAIL", "WEIGHTS", "DEVICE", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD")
_BATCHES_PER_FLUSH = 64
_HOST = torch.device("cpu")


def cached_features(cfg: Any, model: nn.Module, dataset: Sequence[Record]) -> FeatureCache:
    """Return the features of a training set, of which those that are missing are computed.

    Args:
        cfg: with MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE, the folder.
        model: with the weights of the first stage, not distributed, frozen but for its classifier.
        dataset: Detectron2's dictionaries of the training set.
    """
    decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
    folder = Path(decouple.FEATURE_CACHE) / cache_key(cfg, model, dataset)
    with locked(folder):
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


def cache_key(cfg: Any, model: nn.Module, dataset: Sequence[Record]) -> str:
    """Return a digest of everything that decides the features."""
    digest = hashlib.sha256(VERSION.encode())
    relevant = cfg.clone()
    relevant.defrost()
    for name in _NOT_SOURCES:
        relevant.MODEL.pop(name)
    digest.update(relevant.MODEL.dump().encode() + relevant.INPUT.dump().encode())
    digest.update(f"{cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_VIEWS} {_rows_kept(cfg)}".encode())
    if cfg.SOLVER.AMP.ENABLED:
        digest.update(b"computed in mixed precision")
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(_SOURCES):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for record in dataset:
        digest.update(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY, default=str))
        with contextlib.suppress(OSError):  # The mapper will name the image.
            status = os.stat(record["file_name"])
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _rows_kept(cfg: Any) -> int:
    """Return R: as many as the configuration says, or as there are proposals.

    The objects' own boxes come on top of the proposals, and then take the place of a few of the
    background.
    """
    most = max(cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)
    return int(cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS or most)


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
    device = next(model.parameters()).device
    written: list[int] = []
    num_rows: list[int] = []
    position = 0
    with (
        EventStorage(),
        torch.autocast(device.type, enabled=cfg.SOLVER.AMP.ENABLED),
    ):
        for number, batch in enumerate(loader, start=1):
            of_batch = slots[position : position + len(batch)]
            position += len(batch)
            with _seeded(of_batch[0], device):
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
def _seeded(seed: int, device: torch.device = _HOST) -> Iterator[None]:
    """Seed the random generators of the host and of `device`, and afterwards leave them as they
    were.

    Generators of other devices are not touched: a worker of a loader cannot, for it is forked.
    """
    devices = [] if device.type == "cpu" else [device]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.get_device_module(device).manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
