"""Detectron2's data loaders, with errors that name the picture at fault."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import DataLoader

from balms_det.data.catalog import check_num_classes, check_registered
from balms_det.data.samplers import SAMPLERS, build_train_sampler
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


def build_train_loader(cfg: Any) -> DataLoader:
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
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset, sampler=sampler)


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
