"""Small federated sets with predictions, for the tests of reports."""

import json

import numpy as np

SIZE = 96
IDS = list(range(3, 15))
GROUPS = dict(zip(IDS, "rrrrccccffff", strict=True))


def ground_truth(seed=0, images=40, federated=True):
    """Return the content of an annotation file: boxes as polygons."""
    rng = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": []}
    for category_id in IDS:
        category = {"id": category_id, "name": f"class <{category_id}> & </script>"}
        if federated:
            category |= {"frequency": GROUPS[category_id], "image_count": category_id**2}
        content["categories"].append(category)
    for image_id in range(1, images + 1):
        present = rng.choice(IDS, rng.integers(1, 5), replace=False).tolist()
        image = {"id": image_id, "height": SIZE, "width": SIZE, "file_name": f"{image_id}.png"}
        if federated:
            absent = [i for i in IDS if i not in present]
            image["neg_category_ids"] = [i for i in absent if rng.random() < 0.5]
            image["not_exhaustive_category_ids"] = [i for i in present if rng.random() < 0.2]
            del image["file_name"]
            image["coco_url"] = f"http://images.cocodataset.org/val2017/{image_id}.png"
        content["images"].append(image)
        for category_id in present:
            for _ in range(rng.integers(1, 4)):
                x, y = rng.integers(0, 50, 2).tolist()
                w, h = rng.integers(6, 45, 2).tolist()
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [x, y, w, h],
                        "area": float(w * h),
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "iscrowd": int(not federated and rng.random() < 0.1),
                    }
                )
    return content


def results(content, seed=0, masks=True):
    """Return detections in COCO's result format: near objects, of their class and of others.

    Their numbers are float32, in which the package keeps them.
    """
    rng = np.random.default_rng(seed + 1000)
    found = []
    for annotation in content["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(annotation["bbox"], float) + rng.normal(0, 2.5, 4)
            box = np.maximum(np.round(4 * box) / 4, [0, 0, 2, 2]).tolist()
            right = rng.random() < 0.7
            record = {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"] if right else int(rng.choice(IDS)),
                "bbox": box,
                "score": float(np.float32(rng.random() ** (1 if right else 2))),
            }
            if masks:
                x, y, w, h = box
                record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            found.append(record)
    return found


def written(folder, content, found, name="results"):
    """Write both files; return their paths."""
    annotations, predictions = folder / "gt.json", folder / f"{name}.json"
    annotations.write_text(json.dumps(content))
    predictions.write_text(json.dumps(found))
    return str(annotations), str(predictions)
