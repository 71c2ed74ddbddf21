"""Result files of any framework are read the same, whole or in parts."""

import dataclasses
import json

import numpy as np
import pycocotools.mask as pycocotools_mask
import pytest

from balms_det.evaluation import read_predictions
from balms_det.evaluation.predictions import write_predictions
from balms_det.runtime.errors import InputError

SIZE = (40, 60)


def square(x, y, side):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    return mask


def compressed(mask):
    rle = pycocotools_mask.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def uncompressed(mask):
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(SIZE), "counts": counts}


def polygon(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


SQUARES = [(2, 3, 10), (20, 5, 8), (30, 20, 15), (0, 0, 6)]


def records(segmentation=None, boxes=True):
    found = []
    for number, (x, y, side) in enumerate(SQUARES):
        record = {"image_id": 7 - number // 2, "category_id": 1 + number, "score": 0.5 + number / 8}
        if boxes:
            record["bbox"] = [x, y, side, side]
        if segmentation == "compressed":
            record["segmentation"] = compressed(square(x, y, side))
        elif segmentation == "uncompressed":
            record["segmentation"] = uncompressed(square(x, y, side))
        elif segmentation == "polygon":
            record["segmentation"] = polygon(x, y, side)
        found.append(record)
    return found


def written(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def as_plain(predictions):
    return [
        {
            k: v.tolist() if isinstance(v, np.ndarray) else v
            for k, v in dataclasses.asdict(p).items()
        }
        for p in predictions
    ]


def test_images_are_in_order_and_detections_as_in_the_file(tmp_path):
    found = read_predictions(written(tmp_path, records("compressed")))
    assert [p.image_id for p in found] == [6, 7]
    assert [p.category_ids.tolist() for p in found] == [[3, 4], [1, 2]]
    assert found[1].boxes.tolist() == [[2, 3, 10, 10], [20, 5, 8, 8]]
    assert found[1].scores.tolist() == [0.5, 0.625]
    assert found[1].image_size == SIZE


@pytest.mark.parametrize("kind", ["uncompressed", "polygon"])
def test_every_form_of_mask_is_the_same_mask(tmp_path, kind):
    expected = as_plain(read_predictions(written(tmp_path, records("compressed"))))
    sizes = {6: SIZE, 7: SIZE}
    assert as_plain(read_predictions(written(tmp_path, records(kind)), sizes)) == expected


def test_absent_boxes_are_those_of_the_masks(tmp_path):
    expected = as_plain(read_predictions(written(tmp_path, records("compressed"))))
    found = read_predictions(written(tmp_path, records("compressed", boxes=False)))
    assert as_plain(found) == expected


@pytest.mark.parametrize("separator", [",", " ,\n  "])
@pytest.mark.parametrize("kind", [None, "compressed", "polygon"])
@pytest.mark.parametrize("part_bytes", [1, 50, 200, 1000])
def test_a_file_that_is_read_in_parts_is_the_same(tmp_path, kind, separator, part_bytes):
    some = records(kind) + records(kind)  # the images come again, in another part
    text = "[" + separator.join(json.dumps(record) for record in some) + "]\n"
    path, sizes = written(tmp_path, text), {6: SIZE, 7: SIZE}
    found = as_plain(read_predictions(path, sizes, part_bytes=part_bytes))
    assert found == as_plain(read_predictions(path, sizes))
    assert [len(p["scores"]) for p in found] == [4, 4]


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path, records("compressed"))
    predictions = read_predictions(path)
    write_predictions(path, predictions)
    assert as_plain(read_predictions(path)) == as_plain(predictions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("score"), "score"),
        (lambda r: r.pop("bbox"), "bbox"),
        (lambda r: r.update(bbox=[1, 2, 3]), "in COCO's result format"),
        (lambda r: r.update(segmentation=polygon(1, 1, 2)), "size is not known"),
    ],
)
def test_a_record_that_lacks_something_is_refused(tmp_path, change, words):
    content = records()
    for record in content:
        change(record)
    with pytest.raises(InputError, match="results.json: these are no predictions") as error:
        read_predictions(written(tmp_path, content))
    assert words in str(error.value)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    text = json.dumps(records())[:-20]
    for part_bytes in (50, 10_000):
        with pytest.raises(InputError, match="not valid JSON"):
            read_predictions(written(tmp_path, text), part_bytes=part_bytes)


def test_a_file_without_detections_is_read(tmp_path):
    assert read_predictions(written(tmp_path, "[]")) == []
