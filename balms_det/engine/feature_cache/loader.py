"""Training on cached features: a sample of an image's proposals in place of the image.

Names and shapes as in :mod:`balms_det.engine.feature_cache`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.modeling.sampling import subsample_labels
from torch.utils.data import DataLoader

from balms_det.data import MetaTrainingSampler, build_train_loader, with_index
from balms_det.engine.feature_cache.extraction import Record
from balms_det.engine.feature_cache.store import FeatureCache


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
        """Return the sampled rows of one image, in a random one of its views.

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


def build_feature_loader(
    cfg: Any,
    dataset: Sequence[Record],
    cache: FeatureCache,
    sampler: MetaTrainingSampler | None = None,
) -> DataLoader:
    """Return as :func:`balms_det.data.build_train_loader`, with features in the place of images."""
    heads = cfg.MODEL.ROI_HEADS
    mapper = SampleOfProposals(
        cache, heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.NUM_CLASSES
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # Reading a memory map takes less time than handing it over.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    return build_train_loader(cfg, dataset=with_index(dataset), mapper=mapper, sampler=sampler)
