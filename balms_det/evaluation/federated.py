"""COCO's ground truth seen as LVIS's: one way to score both.

An image of COCO judges every class. As a federated image it has every class on its list of verified
ones, and AP is that of COCO to the last bit, if a class has at most 100 detections in an image.
"""

import dataclasses

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation.ground_truth import check_ground_truth
from balms_det.runtime.errors import InputError


def federated_view(file: AnnotationFile, stats: ClassStats | None = None) -> AnnotationFile:
    """Return a ground truth with the fields of LVIS.

    Args:
        file: in LVIS format, which is checked, or in COCO format.
        stats: of the training set; they give the classes their counts and, unless the file is in
            LVIS format, their groups. By default those of the file itself.

    Raises:
        InputError: a field is missing, or `stats` are those of other classes.
    """
    image_ids = {image["id"] for image in file.images}
    for annotation in file.annotations:
        if annotation["image_id"] not in image_ids:
            raise InputError(
                f"{file.path}: annotation {annotation['id']} is of image "
                f"{annotation['image_id']}, which is not listed; run `balms-det check` on it"
            )
    if file.format == "lvis":
        check_ground_truth(file)
        if stats is None:
            return file
    counts = ClassStats.from_annotation_file(file) if stats is None else stats
    known = dict(zip(counts.category_ids, range(counts.num_classes), strict=True))
    categories = []
    for category in file.categories:
        if category["id"] not in known:
            raise InputError(
                f"{file.path}: category {category['id']} ({category['name']!r}) is not in the "
                "class statistics; give those of the set that the model was trained on"
            )
        index = known[category["id"]]
        count = int(counts.image_counts[index])
        group = category.get("frequency", counts.groups[index])
        categories.append({**category, "frequency": group, "image_count": count})
    images, annotations = file.images, file.annotations
    if file.format == "coco":
        annotations = [
            a if "area" in a else {**a, "area": a["bbox"][2] * a["bbox"][3]} for a in annotations
        ]
        every_class = [category["id"] for category in file.categories]
        images = [
            {**image, "neg_category_ids": every_class, "not_exhaustive_category_ids": []}
            for image in file.images
        ]
    return dataclasses.replace(file, images=images, annotations=annotations, categories=categories)
