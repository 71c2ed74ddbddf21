"""Make a long-tailed data set of real photographs from Clothing Co-Parsing.

    python datasets/prepare_ccp.py clothing-co-parsing/ --out datasets/ccp_lt

The first argument is a clone of bearpaw/clothing-co-parsing on GitHub (Yang, Luo and Lin, CVPR
2014). The command writes images/, whose longer side is at most 512 pixels, and for each of three
folds foldK_train.json and foldK_val.json in LVIS v1 format. The labels of a pixel become objects:
the pixels of a class are one object; those of footwear, socks and gloves are up to two; those of
accessories, bracelets and rings are one for each connected part. The same files and versions of
OpenCV give the same bytes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.io
from pycocotools import mask as mask_util
from scipy import ndimage

from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from balms_det.runtime.progress import progress_bar

LONGEST_SIDE = 512
FOLDS = 3
# Labels that are no class: no clothing, or of too few photographs.
LEFT_OUT = {"null", "skin", "clogs", "earrings", "intimate", "panties", "swimwear"}
PAIRS = {
    "boots", "flats", "gloves", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers",
    "socks", "wedges",
}  # fmt: skip
SEPARATE = {"accessories", "bracelet", "ring"}
# Classes whose absence is not verified: small things that the annotators leave out at times.
UNVERIFIED = {"accessories", "bracelet", "necklace", "ring", "watch"}
# A part of fewer pixels of the photograph, or of a smaller fraction of the largest part, is noise.
LEAST_PIXELS, LEAST_FRACTION = 12, 0.01
# The second object of a pair has at least this fraction of the first one's pixels.
LEAST_OF_PAIR = 0.15
# The tolerance of outlines, and how much the mask is enlarged before it is outlined.
TOLERANCE, ENLARGED = 0.6, 4
# LVIS's groups: a class of at most so many training images is rare, or common.
RARE_AT_MOST, COMMON_AT_MOST = 10, 100
# The fold in which each photograph, 0001 first, is for validation: stratified by class.
FOLD_OF_PHOTOGRAPH = (
    "221201111222011112112000120220222211210010220000012122221211111022002220112022210010210012"
    "021122222211001121100020010120100022011020120102011222012000100001102200002112011101010200"
    "220121100122010121221020221222102021122222011120200211210111100012122021201002001002001220"
    "202221022001112012022000010101201012020110001201121012200210021002001112202211021022212110"
    "020122211001221220201120200020020012012111020100220200011102102201121210012100002100121022"
    "202112011011112200000110222000210122011100012001110112021101221202120010202112210022112210"
    "110120201210222102010101022222111011021021002202212111010020002202011210101021222222110012"
    "002220210002021210122100111012101210200212002110212021012000110000202221201202201100021212"
    "202102011002202101121202212120121222010021011211000110122022020002220122101011200020111212"
    "121010210201222221210201002111120122100212200220212102112102200112110000010212112010021211"
    "211222112201210102002020001122112010011210200022001000112201200110002221120120012020100201"
    "00121112121022"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="clone of bearpaw/clothing-co-parsing")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    labels = read_labels(args.source)
    names = sorted(set(labels) - LEFT_OUT)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    images, objects = [], {}
    numbers = range(1, 1 + len(FOLD_OF_PHOTOGRAPH))
    for number in progress_bar(numbers, "photographs"):
        image, found = prepared(args.source, args.out, number, labels, names)
        images.append(image)
        objects[number] = found
    for fold in range(FOLDS):
        counts = counted(images, objects, len(names), fold)
        categories = categories_of(names, *counts)
        for split in ("train", "val"):
            chosen = [image for image in images if in_split(image["id"], fold, split)]
            annotations = [record for image in chosen for record in objects[image["id"]]]
            content = {
                "info": {
                    "description": "Clothing Co-Parsing, pixel-level annotations as objects, in "
                    "LVIS v1 format",
                    "url": "https://github.com/bearpaw/clothing-co-parsing",
                    "version": "1",
                },
                "licenses": [
                    {
                        "id": 1,
                        "name": "Apache License 2.0",
                        "url": "http://www.apache.org/licenses/LICENSE-2.0",
                    }
                ],
                "images": chosen,
                "annotations": [{**r, "id": i} for i, r in enumerate(annotations, start=1)],
                "categories": categories,
            }
            with atomic_file(args.out / f"fold{fold}_{split}.json") as file:
                file.write(json.dumps(content, separators=(",", ":")).encode())


def read_labels(source: Path) -> list[str]:
    """Return the names of all labels, in the order of their numbers.

    Raises:
        InputError: the directory is not a clone of the repository.
    """
    path = source / "label_list.mat"
    if not path.is_file():
        raise InputError(
            f"{path}: it does not exist; give a clone of bearpaw/clothing-co-parsing (GitHub)"
        )
    return [str(name[0]) for name in scipy.io.loadmat(path)["label_list"][0]]


def prepared(
    source: Path, out: Path, number: int, labels: list[str], names: list[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the image of a photograph, and return its record and those of its objects."""
    name = f"{number:04d}"
    pixels = cv2.imread(str(source / "photos" / f"{name}.jpg"))
    path = source / "annotations" / "pixel-level" / f"{name}.mat"
    if pixels is None or not path.is_file():
        raise InputError(f"{path}: this file or its photograph is missing; clone again")
    label_of_pixel = scipy.io.loadmat(path)["groundtruth"]
    height, width = label_of_pixel.shape
    scale = LONGEST_SIDE / max(height, width)
    size = round(width * scale), round(height * scale)
    smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    quality = (cv2.IMWRITE_JPEG_QUALITY, 90)
    cv2.imwrite(str(out / "images" / f"{name}.jpg"), smaller, quality)
    objects = []
    for category_id, class_name in enumerate(names, start=1):
        of_class = label_of_pixel == labels.index(class_name)
        for share in objects_of(of_class, class_name) if of_class.any() else ():
            resized = cv2.resize(share.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            polygons = polygons_of((resized >= 0.5).astype(np.uint8))
            if polygons:
                record = record_of(polygons, size)
                objects.append({"image_id": number, "category_id": category_id, **record})
    present = {record["category_id"] for record in objects}
    image = {
        "id": number,
        "file_name": f"{name}.jpg",
        "width": size[0],
        "height": size[1],
        "neg_category_ids": [
            i
            for i, class_name in enumerate(names, start=1)
            if i not in present and class_name not in UNVERIFIED
        ],
        "not_exhaustive_category_ids": [],
    }
    return image, objects


def objects_of(mask: np.ndarray, class_name: str) -> list[np.ndarray]:
    """Divide the mask of a class (H, W) into the masks of objects, the largest one first."""
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    least = max(LEAST_PIXELS, LEAST_FRACTION * areas.max())
    kept = [i + 1 for i in np.argsort(-areas, kind="stable") if areas[i] >= least]
    if class_name in SEPARATE:
        return [numbers == i for i in kept]
    if class_name in PAIRS and len(kept) > 1:
        first, second = kept[:2]
        if areas[second - 1] >= LEAST_OF_PAIR * areas[first - 1]:
            return paired(numbers, kept)
    return [np.isin(numbers, kept)] if kept else []


def paired(numbers: np.ndarray, kept: list[int]) -> list[np.ndarray]:
    """Return the masks of two objects: each part joins the nearer one of the two largest."""
    centres = ndimage.center_of_mass(numbers > 0, numbers, kept)
    distances = [np.linalg.norm(np.subtract(centres, centres[k]), axis=1) for k in (0, 1)]
    joins = np.argmin(distances, axis=0)
    return [
        np.isin(numbers, [i for i, k in zip(kept, joins, strict=True) if k == o]) for o in (0, 1)
    ]


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """Return the outlines of an object (H, W), which is cut through its holes until it has none."""
    polygons = []
    for piece in connected(mask):
        pending = [piece]
        while pending:
            part = pending.pop()
            contours, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            # A hole of a single pixel, whose outline has four points, stays.
            holes = [
                contour
                for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True)
                if parent >= 0 and len(contour) > 4
            ]
            if not holes:
                polygons += outlines(part)
                continue
            column = int(max(holes, key=cv2.contourArea)[:, 0, 0].mean()) + 1
            left, right = part.copy(), part.copy()
            left[:, column:] = 0
            right[:, :column] = 0
            pending += connected(left) + connected(right)
    return polygons


def connected(mask: np.ndarray) -> list[np.ndarray]:
    """Return the parts of a mask that are connected by the sides of pixels."""
    numbers, count = ndimage.label(mask)
    return [(numbers == i).astype(np.uint8) for i in range(1, 1 + count)]


def outlines(mask: np.ndarray) -> list[list[float]]:
    """Return the simplified outlines of a mask without holes, within the pixels of its edge."""
    enlarged = np.kron(mask, np.ones((ENLARGED, ENLARGED), np.uint8))
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simplified = [cv2.approxPolyDP(c, TOLERANCE * ENLARGED, True).reshape(-1, 2) for c in contours]
    return [
        np.round((points + 0.5) / ENLARGED, 1).flatten().tolist()
        for points in simplified
        if len(points) > 2
    ]


def record_of(polygons: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Return segmentation, box (x, y, w, h) and area of an object, in pixels."""
    width, height = size
    codes = mask_util.frPyObjects(polygons, height, width)
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    low, high = points.min(0), points.max(0)
    return {
        "segmentation": polygons,
        "bbox": np.round([*low, *(high - low)], 1).tolist(),
        "area": float(mask_util.area(mask_util.merge(codes))),
    }


def in_split(number: int, fold: int, split: str) -> bool:
    """Return whether a photograph is in the training or validation set of a fold."""
    return (int(FOLD_OF_PHOTOGRAPH[number - 1]) == fold) == (split == "val")


def counted(
    images: list[dict[str, Any]],
    objects: dict[int, list[dict[str, Any]]],
    num_classes: int,
    fold: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of training images, and of training objects, of each class."""
    of_images, of_objects = np.zeros(num_classes, int), np.zeros(num_classes, int)
    for image in images:
        if in_split(image["id"], fold, "train"):
            found = np.array([r["category_id"] - 1 for r in objects[image["id"]]], int)
            np.add.at(of_objects, found, 1)
            of_images[np.unique(found)] += 1
    return of_images, of_objects


def categories_of(
    names: list[str], of_images: np.ndarray, of_objects: np.ndarray
) -> list[dict[str, Any]]:
    """Return the records of the classes, in LVIS's groups and in thirds by their images."""
    rank = np.argsort(np.argsort(of_images, kind="stable"), kind="stable")
    return [
        {
            "id": index + 1,
            "name": name,
            "synonyms": [name],
            "synset": name,
            "image_count": int(of_images[index]),
            "instance_count": int(of_objects[index]),
            "frequency": "r"
            if of_images[index] <= RARE_AT_MOST
            else "c"
            if of_images[index] <= COMMON_AT_MOST
            else "f",
            "frequency_thirds": "rcf"[min(2, 3 * int(rank[index]) // len(names))],
        }
        for index, name in enumerate(names)
    ]


if __name__ == "__main__":
    run_tool(main)
