"""Data sets and loaders."""

from balms_det.data.catalog import (
    check_num_classes,
    check_registered,
    dataset_class_stats,
    register_dataset,
)
from balms_det.data.dataset_dicts import load_dataset_dicts
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
    "LongTailDatasetMapper",
    "MetaTrainingSampler",
    "build_test_loader",
    "build_train_loader",
    "check_num_classes",
    "check_registered",
    "dataset_class_stats",
    "load_dataset_dicts",
    "load_train_dataset",
    "meta_sampler_of",
    "register_dataset",
    "with_index",
]
