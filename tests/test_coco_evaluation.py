"""COCO-format sets are scored by COCO's rules, and by frequency; the reference is pycocotools."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_lvis_evaluation import (
    METRICS,
    NUM_CLASSES,
    as_instances,
    make_ground_truth,
    score,
)

from balms_det.annotations.class_stats import ClassStats
from balms_det.evaluation import LVISEvaluator
from balms_det.runtime.errors import InputError

NAMES = [f"class {index}" for index in range(NUM_CLASSES)]


def coco_content(seed=0, *, crowds=True):
    """The ground truth of the LVIS tests as COCO has it, with crowds."""
    content, perfect = make_ground_truth(seed)
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            del image[field]
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["iscrowd"] = int(crowds and number % 7 == 0)
    return content, perfect


@pytest.fixture
def register(tmp_path):
    """Write annotations and register them, with the classes in a given order of their names."""
    names = []

    def register(content, classes=NAMES):
        name = f"coco_evaluation_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        id_of = {category["name"]: category["id"] for category in content["categories"]}
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=list(classes),
            thing_dataset_id_to_contiguous_id={id_of[c]: i for i, c in enumerate(classes)},
            evaluator_type="coco",
        )
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def stats(image_counts, names=NAMES):
    return ClassStats(
        image_counts=image_counts,
        instance_counts=image_counts,
        num_images=1000,
        num_annotated_images=1000,
        category_ids=range(1, len(names) + 1),
        names=names,
        groups=["r" if n <= 10 else "c" if n <= 100 else "f" for n in image_counts],
    )


COUNTS = [3, 200, 50, 9, 11, 100, 101, 10, 500, 70, 4, 999]


def reference(path, evaluator, instances, task):
    """Return pycocotools' nine values in percent, and the precision (T, P, K, A)."""
    evaluator.reset()
    for image_id, prediction in instances.items():
        evaluator.process([{"image_id": image_id}], [{"instances": prediction}])
    records = [r for p in evaluator._predictions.values() for r in p.records([task])]
    ground_truth = COCO(path)
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(records), task)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # 100 detections of a class

    def mean(values):
        measured = values[values > -1]
        return measured.mean() * 100 if measured.size else -100

    values = {
        "AP": precision[..., 0],
        "AP50": precision[0, ..., 0],
        "AP75": precision[5, ..., 0],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
    }
    groups = np.array(stats(COUNTS).groups)
    values |= {f"AP{g}": precision[:, :, groups == g, 0] for g in "rcf"}
    return {name: mean(value) for name, value in values.items()}


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize("perturbation", ["none", "noisy boxes", "noisy scores"])
def test_every_value_equals_pycocotools(register, crowds, perturbation, capsys):
    content, perfect = coco_content(crowds=crowds)
    rng = np.random.default_rng(3)
    if perturbation != "none":
        for image_id, found in perfect.items():
            boxes = found.boxes + rng.normal(0, 3, found.boxes.shape).astype(np.float32)
            classes = np.where(
                rng.random(len(found.classes)) < 0.2, rng.integers(NUM_CLASSES), found.classes
            )
            scores = rng.random(len(found.scores)).astype(np.float32)
            perfect[image_id] = type(found)(
                boxes if perturbation == "noisy boxes" else found.boxes,
                found.masks,
                scores,
                classes,
            )
    instances = as_instances(perfect)
    name = register(content)
    evaluator = LVISEvaluator(name, class_stats=stats(COUNTS))
    path = MetadataCatalog.get(name).json_file
    expected = {task: reference(path, evaluator, instances, task) for task in ("bbox", "segm")}
    results, per_class = score(name, instances, class_stats=stats(COUNTS))
    for task in expected:
        assert list(results[task]) == METRICS
        assert results[task] == pytest.approx(expected[task], abs=1e-9)
    assert [r["image_count"] for r in per_class] == COUNTS
    assert [r["frequency"] for r in per_class] == list(stats(COUNTS).groups)


def test_the_order_of_classes_in_the_file_does_not_matter(register):
    """A permutation of ids and names is found by name."""
    content, perfect = coco_content()
    expected, _ = score(register(content), as_instances(perfect), class_stats=stats(COUNTS))
    permuted = copy.deepcopy(content)
    order = np.random.default_rng(0).permutation(NUM_CLASSES)
    permuted["categories"] = [
        {"id": i + 1, "name": NAMES[old]} for i, old in enumerate(order.tolist())
    ]
    new_id = {old + 1: i + 1 for i, old in enumerate(order.tolist())}
    for annotation in permuted["annotations"]:
        annotation["category_id"] = new_id[annotation["category_id"]]
    name = register(permuted, [NAMES[old] for old in order])
    results, per_class = score(name, as_instances(perfect), class_stats=stats(COUNTS))
    for task in expected:
        assert results[task] == pytest.approx(expected[task])
    assert {r["name"]: r["image_count"] for r in per_class} == dict(zip(NAMES, COUNTS, strict=True))
    unmatched, _ = score(name, as_instances(perfect))
    assert unmatched["bbox"]["AP"] < expected["bbox"]["AP"] / 2  # what scoring by position gives


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ([*NAMES[:-1], "renamed"], "the model's class 'renamed' is not one of"),
        (NAMES[:-1], f"class '{NAMES[-1]}' is not one of the model"),
        ([*NAMES[:-2], "a", "b"], r"class 'a' is not one of .* \(2 such classes\)"),
    ],
)
def test_other_classes_are_refused_before_inference(register, trained, message):
    name = register(coco_content()[0])
    with pytest.raises(InputError, match=message):
        LVISEvaluator(name, class_stats=stats(COUNTS[: len(trained)], trained))


def test_fields_that_coco_files_may_lack_are_completed(register):
    """Areas, crowd flags, and ids that start at zero."""
    content, perfect = coco_content(crowds=False)
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"] = None
    content["annotations"] = [a for a in content["annotations"] if a["segmentation"]]
    expected, _ = score(register(content), as_instances(perfect))
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
        del annotation["area"], annotation["iscrowd"]
    results, _ = score(register(content), as_instances(perfect))
    assert results == expected
    assert results["segm"]["APr"] == -100  # without statistics there are no groups


def test_boxes_are_scored_where_no_object_has_a_mask(register):
    content, perfect = coco_content()
    expected, _ = score(register(content), as_instances(perfect), tasks=["bbox"])
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    name = register(content)
    assert score(name, as_instances(perfect))[0] == expected
    LVISEvaluator(name).check_masks()
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    with pytest.raises(InputError, match="annotation 2 has no 'segmentation'"):
        LVISEvaluator(register(content)).check_masks()


def test_groups_of_the_model_can_go_before_those_of_the_file(register):
    content, perfect = make_ground_truth()
    names = [category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])]
    own = {category["name"]: category["frequency"] for category in content["categories"]}
    trained = stats(COUNTS, names)
    for regroup in (False, True):
        name = register(content, names)
        _, per_class = score(name, as_instances(perfect), class_stats=trained, regroup=regroup)
        expected = dict(zip(names, trained.groups, strict=True)) if regroup else own
        assert {r["name"]: r["frequency"] for r in per_class} == expected
