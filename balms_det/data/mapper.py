"""From one of Detectron2's dictionaries to an image with instances, with errors that name it."""

from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError

from balms_det.runtime.errors import InputError


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's mapper; an image or mask that cannot be used is an InputError naming it.

    INPUT.LARGE_SCALE_JITTER takes the place of Detectron2's resizing.
    """

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        arguments: dict[str, Any] = super().from_config(cfg, is_train)
        jitter = cfg.INPUT.LARGE_SCALE_JITTER
        if not is_train or not jitter.SIZE:
            return arguments
        if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
            raise InputError(
                f"INPUT.LARGE_SCALE_JITTER.SIZE is {jitter.SIZE}, whose crops need bit masks, but "
                f"INPUT.MASK_FORMAT is {cfg.INPUT.MASK_FORMAT!r}; set it to 'bitmask'"
            )
        resize = next(
            place
            for place, augmentation in enumerate(arguments["augmentations"])
            if isinstance(augmentation, T.ResizeShortestEdge)
        )
        arguments["augmentations"][resize : resize + 1] = [
            T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.SIZE, jitter.SIZE),
            # The padding belongs to no object.
            T.FixedSizeCrop((jitter.SIZE, jitter.SIZE), seg_pad_value=0),
        ]
        return arguments

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        crops = any(isinstance(each, T.FixedSizeCrop) for each in self.augmentations.augs)
        if crops and self.use_instance_mask:
            # Detectron2 needs another package to crop polygons.
            for annotation in dataset_dict["annotations"]:
                _rasterise(annotation, dataset_dict["height"], dataset_dict["width"])
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        if crops and instances.has("gt_masks"):
            # What a crop leaves of an object may be smaller than what it leaves of its box.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        file_name = dataset_dict["file_name"]
        remedy = "repair or remove it; `balms-det check` lists every such file of a data set"
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


def _rasterise(annotation: dict[str, Any], height: int, width: int) -> None:
    """Replace the polygons of an annotation, if it has some, by their RLE, in place."""
    polygons = annotation.get("segmentation")
    if isinstance(polygons, list):
        rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
        annotation["segmentation"] = rle
