"""Detectron2's data loaders, with errors that name the picture at fault."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from balms_det.data.catalog import check_num_classes, check_registered
from balms_det.data.samplers import SAMPLERS, MetaTrainingSampler, build_train_sampler
from balms_det.errors import InputError


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's mapper; a picture or mask that cannot be used is an InputError naming it."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        file_name = dataset_dict["file_name"]
        remedy = "mend or remove it; tools/check_dataset.py lists every such file of a data set"
        try:
            return super().__call__(dataset_dict)
        except FileNotFoundError as error:
            raise InputError(
                f"{file_name}: there is no such image; check the image root; {remedy}"
            ) from error
        except OSError as error:  # Pillow's, for what it cannot decode
            raise InputError(
                f"{file_name}: the image cannot be read ({error}); {remedy}"
            ) from error
        except SizeMismatchError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{file_name}: the image is not of the size in its annotations ({reason}); {remedy}"
            ) from error


class IndexedDataset(Dataset[dict[str, Any]]):
    """Data set dicts that say where they were: with their index under "dataset_index"."""

    def __init__(self, dataset: Sequence[dict[str, Any]]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._dataset[index], "dataset_index": index}


def build_train_loader(cfg: Any) -> Iterable[list[dict[str, Any]]]:
    """Training batches, drawn as DATALOADER.SAMPLER_TRAIN says."""
    mapper = LongTailDatasetMapper(cfg, is_train=True)
    with _dataset_errors(cfg, cfg.DATASETS.TRAIN):
        if cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
            return build_detection_train_loader(cfg, mapper=mapper)
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    sampler = build_train_sampler(cfg, dataset)
    if isinstance(sampler, MetaTrainingSampler):
        return _drawn_in_this_process(cfg, dataset, mapper, sampler)
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset, sampler=sampler)


def sampler_of(loader: Any) -> MetaTrainingSampler:
    """The sampler of a training loader, where DATALOADER.SAMPLER_TRAIN is MetaTrainingSampler."""
    if isinstance(loader, AspectRatioGroupedDataset):
        loader = loader.dataset
    assert isinstance(loader.sampler, MetaTrainingSampler)
    return loader.sampler


def _drawn_in_this_process(
    cfg: Any, dataset: Sequence[dict[str, Any]], mapper: DatasetMapper, sampler: MetaTrainingSampler
) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's loader, but for a sampler that it would copy into each of its workers."""
    images = IndexedDataset(DatasetFromList(dataset, copy=False))
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
    """The images of one data set, each once, split between the processes."""
    mapper = LongTailDatasetMapper(cfg, is_train=False)
    with _dataset_errors(cfg, [dataset_name]):
        return build_detection_test_loader(
            cfg,
            dataset_name,
            mapper=mapper,
            batch_size=cfg.MODEL.LONG_TAIL.INFERENCE.BATCH_SIZE,
        )


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
