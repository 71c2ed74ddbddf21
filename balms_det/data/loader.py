"""Detectron2's data loaders on cached annotations."""

import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from balms_det.data.cache import CachedDataset, CachedDatasets
from balms_det.data.catalog import cached_dataset, check_num_classes, check_registered
from balms_det.data.copy_paste import CopyPaste
from balms_det.data.mapper import LongTailDatasetMapper
from balms_det.data.samplers import MetaTrainingSampler, build_train_sampler
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

# Detectron2's that load the data sets by themselves, each by its name.
_SAMPLERS_THAT_LOAD = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")


class IndexedDataset(Dataset[dict[str, Any]]):
    """Cached data set dicts that say where they were: with their index under "dataset_index"."""

    def __init__(self, dataset: CachedDataset | CachedDatasets) -> None:
        self._dataset = dataset
        self.class_pairs = dataset.class_pairs

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._dataset[index], "dataset_index": index}


# Detectron2's standard dictionaries of the training images.
TrainingSet = CachedDataset | CachedDatasets | IndexedDataset | list[dict[str, Any]]


def with_index(dataset: TrainingSet) -> TrainingSet:
    """Return the same images, each with its index under "dataset_index", which its mapper then
    finds."""
    if isinstance(dataset, list):
        return [{**record, "dataset_index": index} for index, record in enumerate(dataset)]
    assert not isinstance(dataset, IndexedDataset)
    return IndexedDataset(dataset)


def load_train_dataset(cfg: Any) -> TrainingSet:
    """Return Detectron2's dictionaries of the images of DATASETS.TRAIN, cached where that can
    be."""
    with _dataset_errors(cfg, cfg.DATASETS.TRAIN):
        return _training_set(cfg)


def build_train_loader(
    cfg: Any,
    *,
    dataset: TrainingSet | None = None,
    mapper: Callable[[dict[str, Any]], Any] | None = None,
    sampler: MetaTrainingSampler | None = None,
) -> Iterable[list[Any]]:
    """Return training batches, drawn as DATALOADER.SAMPLER_TRAIN says.

    Args:
        cfg: the configuration.
        dataset: as :func:`load_train_dataset` gives it, or :func:`with_index` makes of that, which
            the Meta Sampler asks for; loaded where None.
        mapper: from one of its dictionaries to what a batch lists; None for images with instances.
        sampler: with rates that are learned already; None for a new one.
    """
    # A configuration of Detectron2 alone has no such key.
    pastes = mapper is None and cfg.INPUT.get("COPY_PASTE", {}).get("PROB", 0) > 0
    if mapper is None:
        mapper = LongTailDatasetMapper(cfg, is_train=True)
    if dataset is None:
        if cfg.DATALOADER.SAMPLER_TRAIN in _SAMPLERS_THAT_LOAD:
            if pastes:
                mapper = _copy_paste(cfg, mapper, load_train_dataset(cfg))
            with _dataset_errors(cfg, cfg.DATASETS.TRAIN):
                return build_detection_train_loader(cfg, mapper=mapper)
        dataset = load_train_dataset(cfg)
        if cfg.DATALOADER.SAMPLER_TRAIN == "MetaTrainingSampler":
            dataset = with_index(dataset)
    if pastes:
        mapper = _copy_paste(cfg, mapper, dataset)
    chosen = build_train_sampler(cfg, dataset) if sampler is None else sampler
    if isinstance(chosen, MetaTrainingSampler):
        return _drawn_in_this_process(cfg, dataset, mapper, chosen)
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset, sampler=chosen)


def _copy_paste(cfg: Any, mapper: Callable[[dict[str, Any]], Any], dataset: Any) -> CopyPaste:
    """Return a mapper that also pastes, as INPUT.COPY_PASTE says.

    Raises:
        InputError: the objects have no bit masks.
    """
    if not cfg.MODEL.MASK_ON or cfg.INPUT.MASK_FORMAT != "bitmask":
        raise InputError(
            f"INPUT.COPY_PASTE.PROB is {cfg.INPUT.COPY_PASTE.PROB}, which needs bit masks, but "
            f"MODEL.MASK_ON is {cfg.MODEL.MASK_ON} and INPUT.MASK_FORMAT is "
            f"{cfg.INPUT.MASK_FORMAT!r}; set them to True and 'bitmask'"
        )
    options = cfg.INPUT.COPY_PASTE
    return CopyPaste(mapper, dataset, prob=options.PROB, rare_prob=options.RARE_PROB)


def meta_sampler_of(loader: Any) -> MetaTrainingSampler | None:
    """Return the sampler of a training loader where it is the Meta Sampler, else None."""
    if isinstance(loader, AspectRatioGroupedDataset):
        loader = loader.dataset
    sampler = getattr(loader, "sampler", None)
    return sampler if isinstance(sampler, MetaTrainingSampler) else None


def _drawn_in_this_process(
    cfg: Any,
    images: TrainingSet,
    mapper: Callable[[dict[str, Any]], Any],
    sampler: MetaTrainingSampler,
) -> Iterable[list[dict[str, Any]]]:
    """Return Detectron2's loader for a sampler that it would copy into each of its workers."""
    if isinstance(images, list):
        images = DatasetFromList(images, copy=False)
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    loader = DataLoader(
        MapDataset(images, mapper),
        batch_size=1 if grouping else batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=operator.itemgetter(0) if grouping else trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
    )
    return AspectRatioGroupedDataset(loader, batch_size) if grouping else loader


def build_test_loader(cfg: Any, dataset_name: str) -> DataLoader:
    """Return the images of one data set, each once, split between the processes."""
    mapper = LongTailDatasetMapper(cfg, is_train=False)
    batch_size = cfg.MODEL.LONG_TAIL.INFERENCE.BATCH_SIZE
    with _dataset_errors(cfg, [dataset_name]):
        dataset = _cached(cfg, dataset_name)
        if dataset is None:
            return build_detection_test_loader(
                cfg, dataset_name, mapper=mapper, batch_size=batch_size
            )
    return build_detection_test_loader(
        dataset, mapper=mapper, batch_size=batch_size, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def _training_set(cfg: Any) -> TrainingSet:
    """Return what Detectron2's ``get_detection_dataset_dicts`` returns."""
    names = cfg.DATASETS.TRAIN
    parts = [part for name in names if (part := _cached(cfg, name)) is not None]
    if len(parts) < len(names):
        return get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if cfg.MODEL.KEYPOINT_ON
            else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        parts = [part.without_empty_images() for part in parts]
    check_metadata_consistency("thing_classes", names)
    dataset = parts[0] if len(parts) == 1 else CachedDatasets(parts)
    if not len(dataset):
        raise InputError(
            f"no image of {', '.join(names)} has an annotation to train on; check DATASETS.TRAIN"
        )
    logger.info(
        "%d images with %d objects to train on", len(dataset), len(dataset.class_pairs()[0])
    )
    return dataset


def _cached(cfg: Any, name: str) -> CachedDataset | None:
    # Proposals are added to the dictionaries, and keypoints are not in the cache.
    if cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON:
        return None
    return cached_dataset(name)


@contextmanager
def _dataset_errors(cfg: Any, names: Sequence[str]) -> Iterator[None]:
    """Refuse data sets that are missing or do not fit the model, while a loader is built."""
    for name in names:
        check_registered(name)
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: this annotation file of {', '.join(names)} is missing; set "
            "DETECTRON2_DATASETS to the folder that holds it (layout: datasets/README.md)"
        ) from error
    for name in names:
        check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
