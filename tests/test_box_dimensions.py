"""Box-counting dimensions: against a loop over cells and NumPy's line, and in statistics files."""

import dataclasses
import json

import numpy as np
import pytest
from detectron2.structures import BoxMode

from balms_det.annotations.box_dimensions import box_dimensions, centers_in_dicts, centers_in_file
from balms_det.annotations.class_stats import ClassStats
from balms_det.runtime.errors import InputError


def dimension_in_loops(points, largest_grid=64):
    """FRACAL, arXiv:2410.11774, section 3, for one class, by sets of cells."""
    if len(points) < 4:
        return 1.0
    x, y = [], []
    for grid in range(1, largest_grid + 1):
        if grid * grid > len(points):
            break
        cells = {(min(int(a * grid), grid - 1), min(int(b * grid), grid - 1)) for a, b in points}
        x.append(np.log(grid))
        y.append(np.log(len(cells)))
    return max(np.polyfit(x, y, 1)[0], 1.0)


def test_dimensions_agree_with_the_loop():
    rng = np.random.default_rng(0)
    counts = [0, 1, 3, 4, 5, 8, 9, 40, 300, 5000]
    spread = [0.0, 0.1, 1.0, 1.0, 0.01, 0.5, 1.0, 0.3, 1.0, 0.7]
    classes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centers = rng.random((len(classes), 2)) * np.array(spread)[classes][:, None]
    centers[::3, 1] = 0.5  # some on a line
    actual = box_dimensions(classes, centers, len(counts))
    expected = [dimension_in_loops(centers[classes == j]) for j in range(len(counts))]
    np.testing.assert_allclose(actual, expected, rtol=1e-10)
    assert len(set(np.round(actual, 6))) > 4  # they differ, or the test shows nothing


def test_points_that_fill_the_image_have_two_dimensions_and_those_on_a_line_one():
    side = (np.arange(128) + 0.5) / 128
    plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    line = np.stack([np.linspace(0, 1, 4096, endpoint=False), np.full(4096, 0.3)], axis=1)
    place = np.full((4096, 2), 0.77)
    for points, expected in ((plane, 2), (line, 1), (place, 1)):
        zeros = np.zeros(len(points), np.int64)
        assert box_dimensions(zeros, points, 1)[0] == pytest.approx(expected)


def test_grids_are_no_finer_than_the_boxes_and_the_largest():
    """Nine boxes are seen on grids up to 3, and the tenth class has none."""
    points = np.random.default_rng(1).random((9, 2))
    zeros = np.zeros(9, np.int64)
    by_three = box_dimensions(zeros, points, 10, largest_grid=3)
    assert np.array_equal(box_dimensions(zeros, points, 10), by_three)
    assert by_three[1:].tolist() == [1.0] * 9


def test_centres_on_and_beyond_the_edges_count_as_within():
    points = np.array([[1.0, 1.0], [-0.1, 0.2], [0.2, 1.3], [0.9, 0.1]])
    zeros = np.zeros(4, np.int64)
    inside = np.array([[0.9, 0.9], [0.1, 0.2], [0.2, 0.9], [0.9, 0.1]])
    assert box_dimensions(zeros, points, 1) == box_dimensions(zeros, inside, 1)


def test_no_boxes_are_no_error():
    nothing = box_dimensions(np.zeros(0, np.int64), np.zeros((0, 2)), 3)
    assert nothing.tolist() == [1.0] * 3


def content(width=40, height=20):
    boxes = [[10, 5, 4, 2], [0, 0, 40, 20], [30, 10, 2, 8]]
    return {
        "images": [{"id": 7, "width": width, "height": height, "file_name": "a.png"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, "bbox": box}
            for i, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }


CENTERS = [[0.3, 0.3], [0.5, 0.5], [31 / 40, 0.7]]


def test_centres_are_fractions_of_the_image():
    actual = centers_in_file(content()["images"], content()["annotations"])
    np.testing.assert_allclose(actual, CENTERS)


@pytest.mark.parametrize("mode", [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS])
def test_detectron2s_dicts_have_the_same_centres(mode):
    annotations = [
        {"bbox": BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, mode), "bbox_mode": mode}
        for a in content()["annotations"]
    ]
    crowd = {"iscrowd": 1, "bbox": [0, 0, 1, 1], "bbox_mode": mode}
    dicts = [{"width": 40, "height": 20, "annotations": [crowd, *annotations]}, {}]
    np.testing.assert_allclose(centers_in_dicts(dicts), CENTERS)


@pytest.mark.parametrize(
    "change",
    [{"bbox": [1, 2, 3]}, {"bbox": [0, 0, "4", None]}, {"bbox": [0, 0, float("nan"), 1]}],
)
def test_boxes_that_are_none_leave_the_dimensions_unknown(change):
    faulty = content()
    faulty["annotations"][1].update(change)
    assert centers_in_file(faulty["images"], faulty["annotations"]) is None
    of_dicts = [{"width": 9, "height": 9, "annotations": [{**change, "bbox_mode": 1}]}]
    assert centers_in_dicts(of_dicts) is None


def test_images_without_a_size_leave_the_dimensions_unknown():
    assert centers_in_file(content(0, 20)["images"], content()["annotations"]) is None
    box = {"bbox": [0, 0, 1, 1], "bbox_mode": 1}
    assert centers_in_dicts([{"annotations": [box]}]) is None
    rotated = {"bbox": [0, 0, 1, 1, 90], "bbox_mode": BoxMode.XYWHA_ABS}
    assert centers_in_dicts([{"width": 9, "height": 9, "annotations": [rotated]}]) is None


# Statistics


def many(num_boxes=200):
    rng = np.random.default_rng(2)
    scattered = content(100, 100)
    scattered["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": [*corner, 2.0, 2.0]}
        for i, corner in enumerate((98 * rng.random((num_boxes, 2))).tolist(), start=1)
    ]
    return scattered


@pytest.fixture
def stats(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(many()))
    return ClassStats.from_json(path)


def test_statistics_have_the_dimensions_and_keep_them_in_their_file(stats, tmp_path):
    centers = [
        [(b[0] + 1) / 100, (b[1] + 1) / 100] for b in (a["bbox"] for a in many()["annotations"])
    ]
    assert stats.box_dimensions.tolist() == pytest.approx([dimension_in_loops(centers)])
    assert stats.box_dimensions[0] > 1.2
    stats.save(tmp_path / "stats.json")
    again = ClassStats.load(tmp_path / "stats.json")
    assert again.box_dimensions.tolist() == stats.box_dimensions.tolist()
    with pytest.raises(ValueError, match="read-only"):
        again.box_dimensions[0] = 2


def test_a_file_of_an_earlier_version_loads_without_dimensions(stats, tmp_path):
    old = stats.to_dict()
    for record in old["classes"]:
        del record["box_dimension"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    loaded = ClassStats.load(path)
    assert loaded.box_dimensions is None
    assert loaded.to_dict() == old
    assert loaded.instance_counts.tolist() == stats.instance_counts.tolist()


def test_a_file_with_some_dimensions_is_refused(stats, tmp_path):
    two = dataclasses.replace(
        stats,
        **{f: np.tile(getattr(stats, f), 2) for f in ("image_counts", "instance_counts")},
        category_ids=(1, 2),
        names=("a", "b"),
        groups=("r", "r"),
        box_dimensions=np.array([1.5, 1.2]),
    ).to_dict()
    del two["classes"][0]["box_dimension"]
    with pytest.raises(InputError, match="'box_dimensions' has shape"):
        ClassStats.from_dict(two)


def test_several_sets_have_no_dimensions_together(stats):
    assert ClassStats.combine([stats]).box_dimensions is not None
    assert ClassStats.combine([stats, stats]).box_dimensions is None
