"""Drawings keep the coordinates of the image, and labels do not cover one another."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from balms_det.evaluation.visualize import draw_predictions, place_labels

HEIGHT, WIDTH = 200, 300


def instances(boxes):
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.linspace(0.9, 0.5, len(boxes))
    found.pred_classes = torch.arange(len(boxes)) % 3
    return found


@given(
    st.lists(
        st.tuples(
            st.integers(0, WIDTH - 2), st.integers(0, HEIGHT - 2),
            st.integers(1, WIDTH), st.integers(1, HEIGHT),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_labels_are_within_the_image_and_apart(corners):
    boxes = [(x, y, min(x + w, WIDTH), min(y + h, HEIGHT)) for x, y, w, h in corners]
    labels = place_labels(boxes, [f"class {i}" for i in range(len(boxes))], (HEIGHT, WIDTH))
    assert len(labels) == len(boxes)
    placed = [label for label in labels if label is not None]
    covered = np.zeros((HEIGHT, WIDTH), int)
    for label in placed:
        assert label.left >= 0 and label.top >= 0
        bottom, right = label.top + label.height, label.left + label.width
        assert bottom <= HEIGHT and right <= WIDTH
        covered[label.top : bottom, label.left : right] += 1
    assert covered.max(initial=0) <= 1
    if boxes and boxes[0][1] >= 20:
        assert labels[0] is not None  # the most certain one has its place


def test_duplicates_each_have_a_label():
    box = (20, 60, 220, 180)
    labels = place_labels([box] * 4, ["cup 90%"] * 4, (HEIGHT, WIDTH))
    assert None not in labels
    assert len({label.top for label in labels}) == 4


def test_a_pixel_of_the_drawing_is_a_pixel_of_the_image():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = draw_predictions(image, instances([[100, 50, 180, 150]]), list("abc"), None)
    assert drawn.shape == image.shape
    rows, columns = np.nonzero(drawn[55:].sum(axis=2))  # below the label
    assert abs(columns.min() - 100) <= 2 and abs(columns.max() - 180) <= 2
    assert abs(rows.max() + 55 - 150) <= 2
    grouped = draw_predictions(image, instances([]), list("abc"), list("rcf"))
    assert grouped.shape[1] == WIDTH and grouped.shape[0] > HEIGHT  # the legend


def test_small_images_are_enlarged_when_asked_for():
    image = np.zeros((48, 64, 3), np.uint8)
    found = instances([])
    assert draw_predictions(image, found, list("abc"), None, enlarge=True).shape[0] >= 480
    assert draw_predictions(image, found, list("abc"), None).shape == image.shape
