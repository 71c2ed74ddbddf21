"""The federated confusion matrix against loops over images, detections and objects."""

import hotcoco
import numpy as np
import pytest

from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation import ImagePredictions
from balms_det.evaluation.confusion import federated_confusion
from balms_det.evaluation.scoring import judged_detections

SIZE = 64
IDS = [2, 3, 7, 11, 12]  # neither from one nor contiguous
K = len(IDS)


def random_set(seed, images=12, exhaustive=False):
    """A ground truth of rectangles, and predictions near them and elsewhere."""
    rng = np.random.default_rng(seed)
    file = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in IDS]}
    predictions = []
    for image_id in range(1, images + 1):
        present = rng.choice(IDS, rng.integers(0, 4), replace=False).tolist()
        absent = [i for i in IDS if i not in present and (exhaustive or rng.random() < 0.4)]
        partly = [] if exhaustive else [i for i in present if rng.random() < 0.4]
        file["images"].append(
            {
                "id": image_id,
                "height": SIZE,
                "width": SIZE,
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": partly,
            }
        )
        boxes = []
        for category_id in present:
            for _ in range(rng.integers(1, 4)):
                # Objects of two classes often lie on one another.
                near = boxes and rng.random() < 0.4
                box = boxes[-1] + rng.integers(0, 3, 4) if near else random_box(rng)
                boxes.append(box)
                file["annotations"].append(
                    {
                        "id": len(file["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": box.tolist(),
                        "area": float(box[2] * box[3]) * (rng.random() > 0.05),
                        "segmentation": [polygon(box)],
                    }
                )
        if rng.random() < 0.1:
            continue  # nothing is predicted
        number = rng.integers(1, 15)
        found = [
            boxes[rng.integers(len(boxes))] + rng.integers(-1, 3, 4)
            if boxes and rng.random() < 0.8
            else random_box(rng)
            for _ in range(number)
        ]
        found = np.maximum(found, [0, 0, 1, 1])
        predictions.append(
            ImagePredictions(
                image_id,
                (SIZE, SIZE),
                found.astype(np.float32),
                rng.choice(np.linspace(0.05, 0.95, 12), number).astype(np.float32),  # with ties
                rng.choice([*IDS, 99], number),
                b"\n".join(hotcoco.mask.encode(dense(box))["counts"] for box in found),
            )
        )
    return AnnotationFile.from_content(file, "random.json"), predictions


def random_box(rng):
    return np.concatenate([rng.integers(0, 40, 2), rng.integers(4, 20, 2)])


def polygon(box):
    x, y, w, h = (float(v) for v in box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def dense(box):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    x, y, w, h = (int(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    return mask


def box_overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def mask_overlap(a, b):
    a, b = dense(a) > 0, dense(b) > 0
    return int((a & b).sum()) / int((a | b).sum())


def oracle(file, predictions, overlap, threshold, min_score, max_dets):
    """Count by loops, with no array and nothing of the package."""
    matrix = [[0] * (K + 1) for _ in range(K + 1)]
    repeated = [[0] * K for _ in range(K)]
    index = {category_id: i for i, category_id in enumerate(IDS)}
    for image in file.images:
        objects = [a for a in file.annotations if a["image_id"] == image["id"] and a["area"] > 0]
        judged = {a["category_id"] for a in objects} | set(image["neg_category_ids"])
        detections = []
        for p in predictions:
            if p.image_id == image["id"]:
                rows = zip(
                    p.scores.tolist(), p.category_ids.tolist(), p.boxes.tolist(), strict=True
                )
                ranked = sorted(rows, key=lambda row: -row[0])[:max_dets]
                detections = [r for r in ranked if r[0] >= min_score and r[1] in judged]
        taken, matched = {}, set()

        def best(box, wanted, objects=objects, taken=taken):
            found, most = None, threshold
            for position, annotation in enumerate(objects):
                value = overlap(box, annotation["bbox"])
                if position not in taken and wanted(annotation["category_id"]) and value >= most:
                    found, most = position, value
            return found

        for number, (_, category_id, box) in enumerate(detections):
            position = best(box, lambda other, own=category_id: other == own)
            if position is not None:
                taken[position] = category_id
                matched.add(number)
        for number, (_, category_id, box) in enumerate(detections):
            if number in matched or category_id in image["not_exhaustive_category_ids"]:
                continue
            position = best(box, lambda other, own=category_id: other != own)
            if position is not None:
                taken[position] = category_id
                matched.add(number)
        for position, annotation in enumerate(objects):
            column = index[taken[position]] if position in taken else K
            matrix[index[annotation["category_id"]]][column] += 1
        for number, (_, category_id, box) in enumerate(detections):
            if number in matched or category_id in image["not_exhaustive_category_ids"]:
                continue
            on = best(box, lambda other: True, taken=())
            if on is None:
                matrix[K][index[category_id]] += 1
            else:
                repeated[index[objects[on]["category_id"]]][index[category_id]] += 1
    return matrix, repeated


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize(("task", "overlap"), [("bbox", box_overlap), ("segm", mask_overlap)])
def test_random_federated_sets_equal_the_oracle(seed, task, overlap):
    file, predictions = random_set(seed)
    for threshold, min_score, max_dets in [
        (0.5, 0.0, 300),
        (0.3, 0.3, 6),
        (0.9, 0.5, 3),
        (1, 0, 9),
    ]:
        got = federated_confusion(
            file,
            predictions,
            task,
            iou_threshold=threshold,
            min_score=min_score,
            max_dets=max_dets,
        )
        matrix, repeated = oracle(file, predictions, overlap, threshold, min_score, max_dets)
        np.testing.assert_array_equal(got.matrix, matrix)
        np.testing.assert_array_equal(got.repeated, repeated)
        assert got.matrix.dtype == np.int64


def test_the_random_sets_have_every_kind_of_cell():
    total, repeated = np.zeros((K + 1, K + 1)), np.zeros((K, K))
    for seed in range(25):
        got = federated_confusion(*random_set(seed))
        total, repeated = total + got.matrix, repeated + got.repeated
    assert total.ravel()[:-1].min() > 0 and total[K, K] == 0
    assert repeated.min() > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_diagonal_is_what_ap_counts_as_found(seed):
    file, predictions = random_set(seed)
    content = {"images": file.images, "annotations": file.annotations}
    categories = [{**category, "frequency": "f"} for category in file.categories]
    objects = [a for a in file.annotations if a["area"] > 0]
    gt = hotcoco.COCO({**content, "annotations": objects, "categories": categories})
    by_image = {p.image_id: p for p in predictions}
    judged = [
        [a["category_id"] for a in objects if a["image_id"] == i["id"]] + i["neg_category_ids"]
        for i in file.images
    ]
    predicted = [by_image.get(image["id"]) for image in file.images]
    rows, _ = judged_detections(predicted, judged, np.array(IDS), "bbox", 300)
    evaluation = hotcoco.LVISeval(gt, gt.load_res(rows), "bbox")
    evaluation.evaluate()
    status = evaluation.image_diagnostics(iou_thr=0.5)
    got = federated_confusion(file, predictions)
    assert np.trace(got.matrix) == sum(s == "matched" for s in status["gt_status"].values())
    false = sum(s == "fp" for s in status["dt_status"].values())
    confused = got.matrix[:K, :K].sum() - np.trace(got.matrix)
    assert confused + got.repeated.sum() + got.matrix[K].sum() == false


@pytest.mark.parametrize("seed", range(5))
def test_rows_sum_to_the_objects(seed):
    file, predictions = random_set(seed)
    counts = [sum(a["category_id"] == i and a["area"] > 0 for a in file.annotations) for i in IDS]
    got = federated_confusion(file, predictions)
    np.testing.assert_array_equal(got.matrix[:K].sum(axis=1), counts)


def one_image(negatives, not_exhaustive=(), objects=((2, [0, 0, 10, 10]),)):
    return AnnotationFile.from_content(
        {
            "images": [
                {
                    "id": 1,
                    "height": SIZE,
                    "width": SIZE,
                    "neg_category_ids": list(negatives),
                    "not_exhaustive_category_ids": list(not_exhaustive),
                }
            ],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": c, "bbox": box, "area": 100.0}
                for n, (c, box) in enumerate(objects, start=1)
            ],
            "categories": [{"id": i, "name": str(i)} for i in IDS],
        },
        "one.json",
    )


def detections(*rows):
    scores, categories, boxes = zip(*rows, strict=True)
    return [
        ImagePredictions(
            1,
            (SIZE, SIZE),
            np.array(boxes, np.float32),
            np.array(scores, np.float32),
            np.array(categories),
            None,
        )
    ]


def test_a_class_that_was_not_verified_is_never_a_false_positive():
    found = detections((0.9, 3, [0, 0, 10, 10]), (0.8, 3, [40, 40, 9, 9]))
    unverified = federated_confusion(one_image(negatives=[7]), found)
    assert unverified.matrix[:, 1].sum() == 0 and unverified.repeated.sum() == 0
    assert unverified.matrix[0, K] == 1  # the object is missed
    verified = federated_confusion(one_image(negatives=[3]), found)
    assert verified.matrix[0, 1] == 1 and verified.matrix[K, 1] == 1


def test_a_class_that_is_not_annotated_exhaustively_is_found_but_never_false():
    found = detections((0.9, 2, [0, 0, 10, 10]), (0.8, 2, [40, 40, 9, 9]))
    partly = federated_confusion(one_image([], not_exhaustive=[2]), found)
    assert partly.matrix[0, 0] == 1 and partly.matrix.sum() == 1
    fully = federated_confusion(one_image([]), found)
    assert fully.matrix[0, 0] == 1 and fully.matrix[K, 0] == 1


def test_a_right_detection_is_right_although_a_wrong_one_scores_higher():
    found = detections((0.9, 3, [0, 0, 10, 10]), (0.2, 2, [0, 0, 10, 10]))
    got = federated_confusion(one_image([3]), found)
    assert got.matrix[0, 0] == 1 and got.repeated[0, 1] == 1
    assert got.matrix.sum() == 1 and got.repeated.sum() == 1


def test_where_one_detection_meets_one_object_it_is_hotcocos_matrix():
    """Exhaustive images without crowding, where order and preference have no influence."""
    rng = np.random.default_rng(0)
    cells = [[8.0 * x, 8.0 * y, 6.0, 6.0] for x in range(8) for y in range(8)]
    objects = [(int(rng.choice(IDS)), cell) for cell in cells[:40]]
    classes = rng.choice(IDS, 40)
    rows = [
        (float(rng.random()), int(c), cell) for c, cell in zip(classes, cells[20:60], strict=True)
    ]
    file = one_image(IDS, objects=objects)
    categories = [{**category, "frequency": "f"} for category in file.categories]
    gt = hotcoco.COCO(
        {"images": file.images, "annotations": file.annotations, "categories": categories}
    )
    array = np.array([[1, *box, score, category] for score, category, box in rows])
    theirs = hotcoco.COCOeval(gt, gt.load_res(array), "bbox").confusion_matrix()["matrix"]
    got = federated_confusion(file, detections(*rows))
    np.testing.assert_array_equal(got.matrix, theirs)
    assert got.repeated.sum() == 0


def test_a_detection_on_a_crowd_of_its_class_is_ignored():
    file = one_image(IDS)
    crowd = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [30, 30, 30, 30], "area": 900.0}
    file.annotations.append({**crowd, "iscrowd": 1})
    found = detections((0.9, 3, [35, 35, 5, 5]), (0.8, 7, [35, 35, 5, 5]))
    assert federated_confusion(file, found).matrix[K, 1] == 1  # in LVIS, a crowd is an object
    coco = AnnotationFile("coco.json", "coco", file.images, file.annotations, file.categories)
    got = federated_confusion(coco, found)
    assert got.matrix[K, 1] == 0 and got.matrix[K, 2] == 1
    assert got.matrix[:K].sum() == 1  # a crowd is no object to find


def test_without_detections_everything_is_missed():
    file, _ = random_set(0)
    for predictions in ([], detections((0.1, 99, [0, 0, 1, 1]))):
        got = federated_confusion(file, predictions)
        assert got.matrix[:, :K].sum() == 0 and got.repeated.sum() == 0
        assert got.matrix[:K, K].sum() == sum(a["area"] > 0 for a in file.annotations)


def test_groups_add_up_the_classes():
    got = federated_confusion(*random_set(3))
    labels = ["f", "r", "f", "c", "r"]
    between = got.between(labels, "rcf")
    for i, row in enumerate("rcf"):
        for j, column in enumerate("rcf"):
            cells = [
                got.matrix[a, b]
                for a in range(K)
                for b in range(K)
                if labels[a] == row and labels[b] == column
            ]
            assert between[i, j] == sum(cells)
    assert between.sum() == got.matrix.sum() and between[3, 3] == 0
