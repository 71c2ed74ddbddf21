"""Which detections of an exported model count as the same, and the table of a stored run."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from lab.exported import same_detections, table


def instances(boxes, classes, scores, masks=True):
    found = Instances((20, 20))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes).long()
    found.scores = torch.tensor(scores)
    if masks:
        found.pred_masks = torch.zeros(len(scores), 20, 20, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes, strict=True):
            mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return found


BOXES, CLASSES, SCORES = (
    [[0, 0, 10, 10], [5, 5, 20, 15], [5, 5, 20, 15]],
    [1, 2, 3],
    [0.9, 0.8, 0.7],
)


def expected():
    return instances(BOXES, CLASSES, SCORES)


@pytest.mark.parametrize("masks", [True, False])
def test_all_detections_are_the_same_in_any_order(masks):
    here = instances(BOXES, CLASSES, SCORES, masks)
    reverse = [2, 1, 0]
    assert same_detections(here, here) == 3
    assert same_detections(here[reverse], here) == 3


def moved(by):
    return instances([[x + by for x in BOXES[0]], *BOXES[1:]], CLASSES, SCORES)


def test_a_detection_of_another_place_class_score_or_mask_is_another():
    assert same_detections(moved(0.04), expected()) == 3
    assert same_detections(moved(0.06), expected()) == 2
    assert same_detections(instances(BOXES, [1, 2, 4], SCORES), expected()) == 2
    assert same_detections(instances(BOXES, CLASSES, [0.90005, 0.8, 0.7]), expected()) == 3
    assert same_detections(instances(BOXES, CLASSES, [0.9002, 0.8, 0.7]), expected()) == 2
    other = expected()
    other.pred_masks[0, 0, :2] = False  # an IoU of 0.98
    assert same_detections(other, expected()) == 2


def test_a_detection_stands_for_one_other_only():
    twice = instances([BOXES[0]] * 2, [1, 1], [0.9, 0.9])
    once = instances([BOXES[0]], [1], [0.9])
    assert same_detections(once, twice) == same_detections(twice, once) == 1


def test_nothing_is_the_same_as_nothing():
    empty = instances([], [], [])
    assert same_detections(empty, expected()) == same_detections(expected(), empty) == 0


def test_the_table_has_what_was_measured():
    scores = {"AP": 30.123, "APr": -100.0, "APc": 20.0, "APf": 40.0, "AP50": 50.0}
    run = {
        "images": 7,
        "exports": [
            {"format": "pytorch", "precision": "float32", "results": {"bbox": scores}},
            {
                "format": "onnx", "precision": "float32", "results": {"bbox": scores},
                "same": 199, "detections": 200,
            },
        ],
        "machine": "a machine",
        "versions": {"torch": "2.11"},
    }  # fmt: skip
    lines = table(run).splitlines()
    assert lines[0].startswith("| format | precision | box AP | box APr |")
    assert lines[2] == "| pytorch | float32 | 30.12 | - | 20.00 | 40.00 | - |"
    assert lines[3] == "| onnx | float32 | 30.12 | - | 20.00 | 40.00 | 99.50 % |"
    assert lines[-1] == "7 images; a machine; torch 2.11."
