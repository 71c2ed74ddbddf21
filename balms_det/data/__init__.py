"""Data sets and loaders."""

from balms_det.data.cache import CachedDataset
from balms_det.data.catalog import (
    cached_dataset,
    check_num_classes,
    check_registered,
    dataset_class_stats,
    register_dataset,
)
from balms_det.data.dataset_dicts import load_dataset_dicts
from balms_det.data.images import missing_files, read_image
from balms_det.data.loader import (
    build_test_loader,
    build_train_loader,
    load_train_dataset,
    meta_sampler_of,
    with_index,
)
from balms_det.data.mapper import LongTailDatasetMapper
from balms_det.data.samplers import DETECTRON2_SAMPLERS, SAMPLERS, MetaTrainingSampler

__all__ = [
    "DETECTRON2_SAMPLERS",
    "SAMPLERS",
    "CachedDataset",
    "LongTailDatasetMapper",
    "MetaTrainingSampler",
    "build_test_loader",
    "build_train_loader",
    "cached_dataset",
    "check_num_classes",
    "check_registered",
    "dataset_class_stats",
    "load_dataset_dicts",
    "load_train_dataset",
    "meta_sampler_of",
    "missing_files",
    "read_image",
    "register_dataset",
    "with_index",
]
