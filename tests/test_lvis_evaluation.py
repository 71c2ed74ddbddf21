"""One ground truth, predicted on imperfectly in many ways; the reference is lvis-api, run live."""

import copy
import json
import logging
from dataclasses import dataclass, replace

import numpy as np
import pycocotools.mask as pycocotools_mask
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as Detectron2Evaluator
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from lvis import LVIS, LVISEval, LVISResults

from balms_det.evaluation import LVISEvaluator, lvis, scoring
from balms_det.evaluation.scoring import hotcoco_precision
from balms_det.runtime.errors import InputError
from balms_det.runtime.processes import exit_without_teardown
from lab.lvis_api import lvis_api_precision

HEIGHT, WIDTH = 112, 144
NUM_IMAGES = 9
NUM_CLASSES = 12
WITHOUT_OBJECTS = 8  # the position of an image without objects
UNSEEN_CLASS = 11  # occurs nowhere
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


@dataclass(frozen=True)
class Detections:
    """What a model might say about one image: boxes XYXY, classes in [0, NUM_CLASSES)."""

    boxes: np.ndarray
    masks: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def take(self, rows):
        return Detections(self.boxes[rows], self.masks[rows], self.scores[rows], self.classes[rows])

    def instances(self, masks="dense"):
        fields = {
            "pred_boxes": Boxes(torch.from_numpy(self.boxes)),
            "scores": torch.from_numpy(self.scores),
            "pred_classes": torch.from_numpy(self.classes),
        }
        if masks == "dense":
            fields["pred_masks"] = torch.from_numpy(self.masks)
        elif masks == "rle":
            fields["pred_masks_rle"] = [encode(mask) for mask in self.masks]
        return Instances((HEIGHT, WIDTH), **fields)


def encode(mask):
    rle = pycocotools_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def ellipse(center_x, center_y, radius_x, radius_y):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2 <= 1


def random_ellipse(rng):
    radii = rng.choice([5, 12, 30, 65]) * rng.uniform(0.8, 1.2, 2)
    return ellipse(rng.uniform(20, WIDTH - 20), rng.uniform(20, HEIGHT - 20), *radii)


def box_of(mask):
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=np.float32)


def make_ground_truth(seed=0):
    """An LVIS v1 annotation file's content, and the detections of a perfect model.

    All sizes and groups occur; masks are polygons and RLE; category ids are shuffled with respect
    to the file's order; some classes of an image are known to be absent, some not exhaustively
    annotated, and most not judged at all.
    """
    rng = np.random.default_rng(seed)
    images, annotations, perfect = [], [], {}
    for position in range(NUM_IMAGES):
        image_id = 100 - 7 * position
        masks = [random_ellipse(rng) for _ in range(0 if position == WITHOUT_OBJECTS else 7)]
        classes = rng.integers(UNSEEN_CLASS, size=len(masks))
        boxes = np.array([box_of(mask) for mask in masks]).reshape(-1, 4)
        for mask, box, class_index in zip(masks, boxes, classes, strict=True):
            x1, y1, x2, y2 = box.tolist()
            if rng.random() < 0.5:
                segmentation = encode(mask)
            else:
                middle_x, middle_y = (x1 + x2) / 2 + 0.3, (y1 + y2) / 2 - 0.4
                segmentation = [[middle_x, y1, x2, middle_y, middle_x, y2, x1, middle_y]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(class_index) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()),
                    "segmentation": segmentation,
                }
            )
        absent = np.setdiff1d(rng.permutation(NUM_CLASSES)[:5], classes)
        images.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": (absent + 1).tolist(),
                "not_exhaustive_category_ids": [int(c) + 1 for c in classes[:2]],
                "coco_url": f"http://images.example.org/val/{image_id}.jpg",
            }
        )
        perfect[image_id] = Detections(
            boxes=boxes.astype(np.float32),
            masks=np.array(masks, dtype=bool).reshape(-1, HEIGHT, WIDTH),
            scores=rng.random(len(masks), dtype=np.float32),
            classes=classes,
        )
    categories = [
        {
            "id": index + 1,
            "name": f"class_{index}",
            "frequency": "rcf"[index % 3],
            "image_count": 5 * index + 1,
        }
        for index in rng.permutation(NUM_CLASSES).tolist()
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content, perfect


def repeat(detections, times, rng):
    """Every detection `times` times, each with a score of its own."""
    rows = np.tile(np.arange(len(detections.scores)), times)
    scores = rng.random(len(rows), dtype=np.float32)
    return replace(detections.take(rows), scores=scores)


def jittered(detections, rng, pixels=3):
    shifts = rng.integers(-pixels, pixels + 1, size=(len(detections.scores), 2))
    masks = [
        np.roll(mask, tuple(shift), (0, 1))
        for mask, shift in zip(detections.masks, shifts, strict=True)
    ]
    boxes = detections.boxes + rng.normal(0, pixels, detections.boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    return replace(
        detections,
        boxes=boxes.astype(np.float32),
        masks=np.array(masks, dtype=bool).reshape(detections.masks.shape),
    )


def with_wrong_classes(detections, rng, fraction=0.5):
    classes = np.where(
        rng.random(len(detections.classes)) < fraction,
        rng.integers(NUM_CLASSES, size=len(detections.classes)),
        detections.classes,
    )
    return replace(detections, classes=classes)


def with_tied_scores(detections, rng):
    return replace(detections, scores=np.round(detections.scores * 3).astype(np.float32) / 3)


def crowded(detections, rng, count=330):
    """More detections than LVIS counts, the best of them often wrong."""
    times = -(-count // max(1, len(detections.scores)))
    return with_wrong_classes(jittered(repeat(detections, times, rng), rng), rng)


def in_all_classes(detections, rng):
    """Detections of every class everywhere, whether judged in the image or not."""
    spread = repeat(detections, NUM_CLASSES, rng)
    return replace(spread, classes=rng.permutation(np.arange(len(spread.scores)) % NUM_CLASSES))


def with_odd_shapes(detections, rng):
    odd = repeat(detections, 3, rng)
    boxes, masks = odd.boxes.copy(), odd.masks.copy()
    boxes[::3] = [[10, 10, 10, 10]]
    boxes[1::3] = [[-30, -20, WIDTH + 50, HEIGHT + 10]]
    masks[::3] = False
    masks[1::3] = True
    return replace(odd, boxes=boxes, masks=masks)


PERTURBATIONS = {
    "perfect": lambda d, rng: d,
    "jittered": jittered,
    "jittered far": lambda d, rng: jittered(d, rng, pixels=12),
    "wrong classes": with_wrong_classes,
    "duplicates": lambda d, rng: jittered(repeat(d, 4, rng), rng, pixels=1),
    "tied scores": lambda d, rng: with_tied_scores(jittered(repeat(d, 4, rng), rng), rng),
    "one score": lambda d, rng: replace(
        jittered(repeat(d, 3, rng), rng), scores=np.full(3 * len(d.scores), 0.5, np.float32)
    ),
    "scores of zero": lambda d, rng: replace(jittered(d, rng), scores=np.zeros_like(d.scores)),
    "crowded": crowded,
    "crowded, tied": lambda d, rng: with_tied_scores(crowded(d, rng), rng),
    "all classes": in_all_classes,
    "the class without objects": lambda d, rng: replace(
        d, classes=np.full_like(d.classes, UNSEEN_CLASS)
    ),
    "odd shapes": with_odd_shapes,
    "few detections": lambda d, rng: jittered(d, rng).take(rng.random(len(d.scores)) < 0.2),
    "images without detections": lambda d, rng: d.take(slice(0, len(d.scores) * rng.integers(2))),
}


def perturb(perfect, name, seed=0):
    rng = np.random.default_rng(seed)
    return {image_id: PERTURBATIONS[name](d, rng) for image_id, d in perfect.items()}


def as_instances(detections, masks="dense"):
    return {image_id: d.instances(masks) for image_id, d in detections.items()}


@pytest.fixture
def numpy_float(monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)


@pytest.fixture
def register(tmp_path):
    """Registers an annotation file's content as a data set of its own; gives the name."""
    names = []

    def register(content, to_contiguous=None):
        name = f"lvis_evaluation_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=[f"class_{index}" for index in range(NUM_CLASSES)],
        )
        if to_contiguous is not None:
            MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = to_contiguous
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def ground_truth():
    return make_ground_truth()


def reference(name, instances, max_dets=300):
    """Results by task, and the APs of each class by task and category id, by lvis-api.

    From Detectron2's records, prepared as Detectron2's own evaluator does, and in percent.
    """
    json_file = MetadataCatalog.get(name).json_file
    records = [
        {**record, "category_id": record["category_id"] + 1}
        for image_id in sorted(instances)
        for record in instances_to_coco_json(instances[image_id], image_id)
    ]
    results, per_class = {}, {}
    for task in ("bbox", "segm"):
        if task == "segm":
            for record in records:
                del record["bbox"]
        lvis_gt = LVIS(json_file)
        evaluation = LVISEval(lvis_gt, LVISResults(lvis_gt, records, max_dets), task)
        evaluation.run()
        results[task] = {metric: evaluation.get_results()[metric] * 100 for metric in METRICS}
        per_class[task] = {}
        for index, category_id in enumerate(evaluation.params.cat_ids):
            precision = evaluation.eval["precision"][:, :, index, 0].ravel()
            absent = (precision == -1).all()
            per_class[task][category_id] = None if absent else precision.mean() * 100
    return results, per_class


def process(evaluator, instances):
    evaluator.reset()
    for image_id, prediction in instances.items():
        evaluator.process([{"image_id": image_id}], [{"instances": prediction}])


def score(name, instances, **arguments):
    evaluator = LVISEvaluator(name, **arguments)
    process(evaluator, instances)
    return evaluator.evaluate(), evaluator.per_class


def assert_equal_to_reference(name, instances, max_dets=300, **arguments):
    """Equal to the last bit, which is more than the 1e-12 that anybody needs."""
    expected, expected_per_class = reference(name, copy.deepcopy(instances), max_dets)
    results, per_class = score(name, instances, max_dets_per_image=max_dets, **arguments)
    assert results == expected
    for task in expected:
        assert list(results[task]) == METRICS
        aps = {record["category_id"]: record[f"{task}_AP"] for record in per_class}
        assert aps == expected_per_class[task]


@pytest.mark.usefixtures("numpy_float")
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_every_value_equals_lvis_api(register, ground_truth, perturbation):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, perturbation))
    assert_equal_to_reference(register(content), instances)


@pytest.mark.usefixtures("numpy_float")
@pytest.mark.parametrize("perturbation", ["crowded, tied", "odd shapes"])
def test_the_lvis_backend_is_lvis_api(register, ground_truth, perturbation):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, perturbation))
    assert_equal_to_reference(register(content), instances, precision_of=lvis_api_precision)


@pytest.mark.usefixtures("numpy_float")
@pytest.mark.parametrize("seed", range(1, 5))
def test_equality_holds_on_other_ground_truth(register, seed):
    content, perfect = make_ground_truth(seed)
    instances = as_instances(perturb(perfect, "crowded, tied", seed))
    assert_equal_to_reference(register(content), instances)


@pytest.mark.usefixtures("numpy_float")
@pytest.mark.parametrize(
    "change",
    [
        {"area": 0.0},
        {"area": 1e4},
        {"iscrowd": 1},
        {"bbox": [5.0, 5.0, 0.0, 0.0]},
        {"segmentation": encode(np.zeros((HEIGHT, WIDTH)))},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [500, 3000, HEIGHT * WIDTH - 3500]}},
        {"segmentation": [[10, 10, 60, 10, 60, 60], [70.2, 50, 90, 80.7, 65, 79, 60, 55]]},
        {"image_id": 31337},
    ],
    ids=str,
)
def test_equality_holds_for_odd_objects(register, ground_truth, change):
    content, perfect = copy.deepcopy(ground_truth)
    for annotation in content["annotations"][::3]:
        annotation.update(change)
    instances = as_instances(perturb(perfect, "jittered"))
    assert_equal_to_reference(register(content), instances)


@pytest.mark.usefixtures("numpy_float")
@pytest.mark.parametrize("max_dets", [1, 10, 100, 1000])
def test_the_cap_counts_detections_of_all_classes_together(register, ground_truth, max_dets):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, "crowded"))
    name = register(content)
    assert_equal_to_reference(name, instances, max_dets)
    results, _ = score(name, instances)
    other, _ = score(name, instances, max_dets_per_image=max_dets)
    assert other != results


@pytest.mark.usefixtures("numpy_float")
def test_equality_can_fail(register, ground_truth):
    """A change of scores, boxes or masks alone shows in the results that depend on it."""
    content, perfect = ground_truth
    name = register(content)
    detections = perturb(perfect, "jittered")
    rng = np.random.default_rng(1)
    rescored = {
        i: replace(d, scores=rng.random(len(d.scores), dtype=np.float32))
        for i, d in detections.items()
    }
    masks_moved = {i: replace(d, masks=np.roll(d.masks, 4, 1)) for i, d in detections.items()}
    boxes_moved = {i: replace(d, boxes=d.boxes + np.float32(4)) for i, d in detections.items()}
    results, _ = score(name, as_instances(detections))
    expected, _ = reference(name, as_instances(rescored))
    for task in results:
        assert results[task]["AP"] != pytest.approx(expected[task]["AP"], abs=0.1)
    moved, _ = score(name, as_instances(masks_moved))
    assert moved["bbox"] == results["bbox"] and moved["segm"]["AP"] < results["segm"]["AP"]
    moved, _ = score(name, as_instances(boxes_moved))
    assert moved["segm"] == results["segm"] and moved["bbox"]["AP"] < results["bbox"]["AP"]


@pytest.mark.usefixtures("numpy_float")
def test_results_and_predictions_are_those_of_detectron2(register, ground_truth, tmp_path):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, "wrong classes"))
    name = register(content)
    theirs = Detectron2Evaluator(name, output_dir=str(tmp_path / "theirs"), distributed=False)
    process(theirs, instances)
    expected = theirs.evaluate()
    results, _ = score(name, instances, output_dir=tmp_path / "ours")
    assert results == expected
    assert list(results) == list(expected)
    ours, theirs = (
        json.loads((tmp_path / side / "lvis_instances_results.json").read_text())
        for side in ("ours", "theirs")
    )
    assert ours == sorted(theirs, key=lambda record: record["image_id"])


def test_a_perfect_model_scores_100(register):
    content, perfect = make_ground_truth()
    for annotation, mask in zip(
        content["annotations"], (m for d in perfect.values() for m in d.masks), strict=True
    ):
        annotation["segmentation"] = encode(mask)
    results, per_class = score(register(content), as_instances(perfect))
    for metrics in results.values():
        assert metrics == pytest.approx(dict.fromkeys(METRICS, 100.0))
    with_objects = {annotation["category_id"] for annotation in content["annotations"]}
    for record in per_class:
        expected = pytest.approx(100.0) if record["category_id"] in with_objects else None
        assert record["bbox_AP"] == record["segm_AP"] == expected


def test_images_may_come_in_any_order_and_masks_dense_or_as_rle(register, ground_truth):
    content, perfect = ground_truth
    name = register(content)
    detections = perturb(perfect, "tied scores")
    expected = score(name, as_instances(detections))
    shuffled = dict(reversed(detections.items()))
    assert score(name, as_instances(shuffled)) == expected
    assert score(name, as_instances(detections, masks="rle")) == expected


def test_images_are_scored_in_chunks_of_any_size(register, ground_truth, monkeypatch):
    content, perfect = ground_truth
    name = register(content)
    instances = as_instances(perturb(perfect, "crowded, tied"))
    expected = score(name, instances)
    monkeypatch.setattr(scoring, "_IMAGES_PER_CHUNK", 2)
    assert score(name, instances) == expected


def test_half_precision_predictions_are_scored_as_they_are(register, ground_truth):
    content, perfect = ground_truth
    name = register(content)
    half, single = (as_instances(perturb(perfect, "jittered")) for _ in range(2))
    for image_id in half:
        rounded = half[image_id].pred_boxes.tensor.bfloat16()
        half[image_id].pred_boxes.tensor = rounded
        single[image_id].pred_boxes.tensor = rounded.float()
    assert score(name, half) == score(name, single)


def test_category_ids_follow_the_data_sets_mapping(register, ground_truth):
    content, perfect = ground_truth
    expected, _ = score(register(content), as_instances(perfect))
    renumbered = copy.deepcopy(content)
    new_id = {old: 1000 - 3 * old for old in range(1, NUM_CLASSES + 1)}
    for category in renumbered["categories"]:
        category["id"] = new_id[category["id"]]
    for annotation in renumbered["annotations"]:
        annotation["category_id"] = new_id[annotation["category_id"]]
    for image in renumbered["images"]:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[field] = [new_id[old] for old in image[field]]
    name = register(renumbered, {new: old - 1 for old, new in new_id.items()})
    results, per_class = score(name, as_instances(perfect))
    assert results == {
        task: pytest.approx(metrics, rel=0, abs=1e-9) for task, metrics in expected.items()
    }
    assert all(
        record["name"] == f"class_{(997 - record['category_id']) // 3}" for record in per_class
    )


def test_tasks_are_inferred_or_chosen(register, ground_truth):
    content, perfect = ground_truth
    name = register(content)
    both, _ = score(name, as_instances(perfect))
    boxes, per_class = score(name, as_instances(perfect, masks=None))
    assert boxes == {"bbox": both["bbox"]}
    assert all("segm_AP" not in record for record in per_class)
    assert score(name, as_instances(perfect), tasks=["segm"])[0] == {"segm": both["segm"]}


@pytest.mark.parametrize("precision_of", [hotcoco_precision, lvis_api_precision])
@pytest.mark.parametrize("no_images", [True, False])
def test_no_detection_at_all_scores_zero_and_warns(
    register, ground_truth, precision_of, no_images, caplog
):
    content, perfect = ground_truth
    content = {**content, "categories": [{**c, "frequency": "f"} for c in content["categories"]]}
    instances = {} if no_images else as_instances({i: d.take([]) for i, d in perfect.items()})
    with caplog.at_level(logging.WARNING, logger=lvis.__name__):
        results, per_class = score(register(content), instances, precision_of=precision_of)
    assert "detected nothing" in caplog.text
    assert list(results) == (["bbox"] if no_images else ["bbox", "segm"])
    for metrics in results.values():
        groups = {"APr": -100.0, "APc": -100.0}
        assert metrics == {**dict.fromkeys(METRICS, 0.0), **groups}
    assert {record["bbox_AP"] for record in per_class} == {0.0, None}


def test_what_is_written_is_what_is_returned(register, ground_truth, tmp_path):
    content, perfect = ground_truth
    detections = perturb(perfect, "images without detections")
    results, per_class = score(register(content), as_instances(detections), output_dir=tmp_path)
    assert json.loads((tmp_path / "lvis_results.json").read_text()) == results
    assert json.loads((tmp_path / "lvis_per_class.json").read_text()) == per_class
    assert not list(tmp_path.glob("*.partial"))
    records = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert len(records) == sum(len(d.scores) for d in detections.values())
    for record in records:
        mask = pycocotools_mask.decode(record["segmentation"]).astype(bool)
        assert any(np.array_equal(mask, m) for m in detections[record["image_id"]].masks)


def test_records_name_every_class_with_its_group_and_training_images(register, ground_truth):
    content, perfect = ground_truth
    _, per_class = score(register(content), as_instances(perfect))
    for record, category in zip(
        per_class, sorted(content["categories"], key=lambda c: c["id"]), strict=True
    ):
        assert record["category_id"] == category["id"]
        for field in ("name", "frequency", "image_count"):
            assert record[field] == category[field]


@pytest.mark.parametrize("masks", ["dense", None])
def test_no_detections_are_written_as_an_empty_list(register, ground_truth, tmp_path, masks):
    content, perfect = ground_truth
    nothing = as_instances({i: d.take([]) for i, d in perfect.items()}, masks)
    score(register(content), nothing, output_dir=tmp_path)
    assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == []


def test_a_crash_while_scoring_loses_no_predictions(register, ground_truth, tmp_path):
    content, perfect = ground_truth

    def crash(*_):
        raise RuntimeError("scoring failed")

    with pytest.raises(RuntimeError, match="scoring failed"):
        score(
            register(content),
            as_instances(perfect),
            output_dir=tmp_path,
            precision_of=crash,
        )
    assert not (tmp_path / "lvis_results.json").exists()
    assert len(json.loads((tmp_path / "lvis_instances_results.json").read_text())) == sum(
        len(d.scores) for d in perfect.values()
    )


def test_a_crash_while_writing_leaves_the_earlier_file(
    register, ground_truth, tmp_path, monkeypatch
):
    content, perfect = ground_truth
    name = register(content)
    score(name, as_instances(perfect), output_dir=tmp_path)
    earlier = (tmp_path / "lvis_instances_results.json").read_bytes()
    whole = lvis.ImagePredictions.records

    def crash(self, *arguments):
        if self.image_id == 100:
            raise RuntimeError("disk full")
        return whole(self, *arguments)

    monkeypatch.setattr(lvis.ImagePredictions, "records", crash)
    with pytest.raises(RuntimeError, match="disk full"):
        score(name, as_instances(perturb(perfect, "jittered")), output_dir=tmp_path)
    assert (tmp_path / "lvis_instances_results.json").read_bytes() == earlier
    assert not list(tmp_path.glob("*.partial"))


def test_a_test_set_gets_its_predictions_written_and_no_results(register, ground_truth, tmp_path):
    content, perfect = ground_truth
    images = [{k: v for k, v in i.items() if "category_ids" not in k} for i in content["images"]]
    name = register({**content, "images": images, "annotations": []})
    results, per_class = score(name, as_instances(perfect), output_dir=tmp_path)
    assert (results, per_class) == ({}, [])
    assert (tmp_path / "lvis_instances_results.json").stat().st_size > 1000
    assert not (tmp_path / "lvis_results.json").exists()


class Oracle(torch.nn.Module):
    """A model that knows what to predict."""

    def __init__(self, instances):
        super().__init__()
        self.instances = instances

    def forward(self, images):
        return [{"instances": self.instances[image["image_id"]]} for image in images]


def test_it_works_under_detectron2s_inference_loop_and_twice(register, ground_truth):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, "jittered"))
    name = register(content)
    expected, _ = score(name, instances)
    image_ids = list(instances)
    batches = [[{"image_id": i} for i in image_ids[start : start + 2]] for start in range(0, 9, 2)]
    evaluator = LVISEvaluator(name)
    for _ in range(2):
        assert inference_on_dataset(Oracle(instances), batches, evaluator) == expected


def test_the_table_is_logged(register, ground_truth, caplog):
    content, perfect = ground_truth
    with caplog.at_level(logging.INFO, logger=lvis.__name__):
        results, _ = score(register(content), as_instances(perfect))
    assert f"{results['bbox']['APr']:.2f}" in caplog.text and "class_7" in caplog.text


@exit_without_teardown
def _score_one_rank(rank, world_size, init_file, name, content_path, instances, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size
    )
    MetadataCatalog.get(name).set(
        json_file=content_path, thing_classes=[f"class_{i}" for i in range(NUM_CLASSES)]
    )
    scoring._IMAGES_PER_CHUNK = 2
    # One image to rank 0, the others to rank 1: one rank runs out of images long before the other.
    own = {i: p for n, (i, p) in enumerate(instances.items()) if (n > 0) == (rank > 0)}
    results, per_class = score(name, own, output_dir=out)
    torch.save((results, per_class), f"{out}/rank{rank}.pth")


@pytest.mark.e2e
def test_two_processes_give_the_results_of_one(register, ground_truth, tmp_path):
    content, perfect = ground_truth
    instances = as_instances(perturb(perfect, "tied scores"))
    name = register(content)
    expected = score(name, instances, output_dir=tmp_path / "one")
    (tmp_path / "two").mkdir()
    torch.multiprocessing.spawn(
        _score_one_rank,
        nprocs=2,
        args=(
            2,
            tmp_path / "init",
            name,
            MetadataCatalog.get(name).json_file,
            instances,
            str(tmp_path / "two"),
        ),
    )
    assert torch.load(tmp_path / "two" / "rank0.pth", weights_only=False) == expected
    assert torch.load(tmp_path / "two" / "rank1.pth", weights_only=False) == ({}, [])
    for file in ("lvis_instances_results.json", "lvis_results.json", "lvis_per_class.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_image_predicted_on_twice_is_refused(register, ground_truth, monkeypatch):
    content, perfect = ground_truth
    instances = as_instances(perfect)
    evaluator = LVISEvaluator(register(content))
    process(evaluator, instances)
    with pytest.raises(InputError, match="image 93 .* twice"):
        evaluator.process([{"image_id": 93}], [{"instances": instances[93]}])
    monkeypatch.setattr(
        lvis, "gather_predictions", lambda predictions: 2 * predictions
    )  # by two processes
    with pytest.raises(InputError, match="image 44 .* twice"):
        evaluator.evaluate()


def test_an_image_of_another_data_set_is_refused_but_kept(register, ground_truth, tmp_path):
    content, perfect = ground_truth
    instances = {**as_instances(perfect), 12345: perfect[100].instances()}
    with pytest.raises(InputError, match="image 12345 .* not listed in .*json; evaluate on"):
        score(register(content), instances, output_dir=tmp_path)
    assert b"12345" in (tmp_path / "lvis_instances_results.json").read_bytes()


def test_a_model_with_more_classes_than_the_data_set_is_refused(register, ground_truth):
    content, perfect = ground_truth
    too_many = replace(perfect[100], classes=perfect[100].classes + NUM_CLASSES)
    with pytest.raises(InputError, match=r"predicts class \d+ in image 100, .* has 12 classes"):
        score(register(content), {100: too_many.instances()})


def test_masks_must_be_there_to_be_scored(register, ground_truth):
    content, perfect = ground_truth
    with pytest.raises(InputError, match="image 44 have none; set MODEL.MASK_ON"):
        score(register(content), {44: perfect[51].instances(masks=None)}, tasks=["segm"])
    without = copy.deepcopy(content)
    del without["annotations"][4]["segmentation"]
    name = register(without)
    with pytest.raises(InputError, match="annotation 5 has no 'segmentation'"):
        score(name, as_instances(perfect))
    assert list(score(name, as_instances(perfect), tasks=["bbox"])[0]) == ["bbox"]


@pytest.mark.parametrize(
    ("section", "fault", "message"),
    [
        ("images", {"neg_category_ids": None}, "image 86 has no 'neg_category_ids'"),
        ("images", {"not_exhaustive_category_ids": None}, "has no 'not_exhaustive_category_ids'"),
        ("categories", {"frequency": None}, "has no 'frequency'"),
        ("categories", {"frequency": "x"}, "has 'frequency' 'x', expected 'r', 'c' or 'f'"),
        ("categories", {"id": 77}, "does not list category"),
        ("annotations", {"area": None}, "annotation 3 has no 'area'"),
        ("annotations", {"category_id": 99}, "annotation 3 is of category 99, which is not listed"),
        ("annotations", {"id": 0}, "has the id 0"),
    ],
)
def test_ground_truth_that_cannot_be_scored_is_refused_before_inference(
    register, ground_truth, section, fault, message
):
    content = copy.deepcopy(ground_truth[0])
    changed = {**content[section][2], **fault}
    content[section][2] = {key: value for key, value in changed.items() if value is not None}
    if "id" in fault and section == "categories":
        old = ground_truth[0]["categories"][2]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != old]
    with pytest.raises(InputError, match=message):
        LVISEvaluator(register(content))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["bbox", "keypoints"]}, "task is 'keypoints'; choose from bbox, segm"),
        ({"max_dets_per_image": 0}, "max_dets_per_image is 0; set it to 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(register, ground_truth, arguments, message):
    with pytest.raises(InputError, match=message):
        LVISEvaluator(register(ground_truth[0]), **arguments)


def test_a_data_set_that_is_not_registered_is_refused():
    try:
        with pytest.raises(InputError, match="'nowhere' has no 'json_file' in its metadata"):
            LVISEvaluator("nowhere")
    finally:
        MetadataCatalog.remove("nowhere")


def test_numpy_is_left_as_it_was(register, ground_truth):
    content, perfect = ground_truth
    before = hasattr(np, "float")
    score(register(content), as_instances(perfect), precision_of=lvis_api_precision)
    assert hasattr(np, "float") == before
