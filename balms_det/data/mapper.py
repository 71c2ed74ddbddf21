"""From a data set dictionary to what the model takes, with errors that name the image at fault."""

import copy
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError

from balms_det.data.images import read_image
from balms_det.runtime.errors import InputError


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's mapper for every image and mask format.

    An image that cannot be used is an InputError that names it. Masks are polygons where
    INPUT.MASK_FORMAT says so and all masks of the image are polygons; otherwise they are bitmasks.
    Objects without a mask are left out where masks are trained. INPUT.LARGE_SCALE_JITTER takes the
    place of Detectron2's resizing.
    """

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        arguments: dict[str, Any] = super().from_config(cfg, is_train)
        # A configuration of Detectron2 alone has no such key.
        jitter = cfg.INPUT.get("LARGE_SCALE_JITTER")
        if not is_train or jitter is None or not jitter.SIZE:
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._with_bitmasks = copy.copy(self)
        self._with_bitmasks.instance_mask_format = "bitmask"

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return as Detectron2's, with images that only :func:`read_image` reads."""
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format)
        try:
            detection_utils.check_image_size(record, image)
        except SizeMismatchError as error:
            raise InputError(
                f"{record['file_name']}: the image is not of the size in its annotations "
                f"({' '.join(str(error).split())}); repair or remove it; `balms-det check` lists "
                "every such file of a data set"
            ) from error
        semantic = record.pop("sem_seg_file_name", None) if self.is_train else None
        labels = None if semantic is None else read_image(semantic, "L").squeeze(2)
        augmented = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        shape = augmented.image.shape[:2]
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                record, shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            record.pop("annotations", None)
            record.pop("sem_seg_file_name", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        crops = any(isinstance(each, T.FixedSizeCrop) for each in self.augmentations.augs)
        mapper: DatasetMapper = self
        if self.use_instance_mask:
            objects = [a for a in dataset_dict["annotations"] if a.get("segmentation")]
            dataset_dict["annotations"] = objects
            if crops:
                # Detectron2 needs another package to crop polygons.
                for annotation in objects:
                    _rasterise(annotation, dataset_dict["height"], dataset_dict["width"])
            if any(isinstance(a["segmentation"], dict) for a in objects):
                mapper = self._with_bitmasks
        DatasetMapper._transform_annotations(mapper, dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        if crops and instances.has("gt_masks"):
            # What a crop leaves of an object may be smaller than what it leaves of its box.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()


def _rasterise(annotation: dict[str, Any], height: int, width: int) -> None:
    """Replace the polygons of an annotation, if it has some, by their RLE, in place."""
    polygons = annotation.get("segmentation")
    if isinstance(polygons, list):
        rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
        annotation["segmentation"] = rle
