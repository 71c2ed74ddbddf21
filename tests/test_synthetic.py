import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import hotcoco
import numpy as np
import orjson
import pytest
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from hypothesis import given
from hypothesis import strategies as st
from lvis import LVIS
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from balms_det.runtime.errors import InputError
from balms_det.synthetic import (
    MAX_CLASSES,
    GlyphOptions,
    annotation_path,
    balanced_counts,
    class_name,
    dataset,
    exponential_curve,
    generate,
    glyph_characters,
    glyphs,
    images,
    long_tail_counts,
    lvis_v1_curve,
    zipf_curve,
)

MAKE_GLYPHS = Path(__file__).resolve().parents[1] / "datasets" / "make_glyphs.py"
# The first twelve classes hold characters with holes: A, 8, R, 4, &, O.
SMALL = GlyphOptions(classes=12, train_images=40, val_images=15, size=96, not_exhaustive=0.5)
# So few objects that each finds a place.
SPARSE = GlyphOptions(
    classes=6, train_images=60, val_images=20, size=96, min_objects=1, max_objects=2, max_scale=0.3
)


def read(folder, split):
    return orjson.loads(annotation_path(folder, split).read_bytes())


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def picture_of(folder, image):
    return cv2.imread(str(folder.joinpath(*image["coco_url"].split("/")[-2:])))


def masks_of(content, image):
    """(number of objects, height, width), decoded by pycocotools."""
    rles = [a["segmentation"] for a in content["annotations"] if a["image_id"] == image["id"]]
    if not rles:
        return np.zeros((0, image["height"], image["width"]), dtype=bool)
    return coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)


def categories_of(content, image):
    return {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}


def instance_counts(content, num_classes):
    ids = [annotation["category_id"] for annotation in content["annotations"]]
    return np.bincount(ids, minlength=num_classes + 1)[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    assert generate(folder, SMALL)
    return folder


@pytest.fixture(scope="module", params=["train", "val"])
def split(request):
    return request.param


@pytest.fixture(scope="module")
def content(folder, split):
    return read(folder, split)


# Format


def test_the_files_have_exactly_the_fields_of_lvis_v1(content):
    types = {
        "images": {
            "id": int,
            "width": int,
            "height": int,
            "license": int,
            "coco_url": str,
            "flickr_url": str,
            "date_captured": str,
            "neg_category_ids": list,
            "not_exhaustive_category_ids": list,
        },
        "annotations": {
            "id": int,
            "image_id": int,
            "category_id": int,
            "bbox": list,
            "area": float,
            "segmentation": dict,
        },
        "categories": {
            "id": int,
            "name": str,
            "synset": str,
            "synonyms": list,
            "def": str,
            "image_count": int,
            "instance_count": int,
            "frequency": str,
        },
    }
    assert set(content) == {"info", "licenses", *types}
    for section, expected in types.items():
        assert content[section]
        for record in content[section]:
            assert {name: type(value) for name, value in record.items()} == expected
    for section in ("annotations", "categories", "images"):
        ids = [record["id"] for record in content[section]]
        assert ids == list(range(1, len(ids) + 1))


def test_every_picture_is_where_the_last_two_parts_of_coco_url_say(folder, split, content):
    for image in content["images"]:
        assert image["coco_url"].split("/")[-2] == split
        assert picture_of(folder, image).shape == (image["height"], image["width"], 3)
    assert len(list((folder / split).iterdir())) == len(content["images"])


def test_the_official_reader_and_hotcoco_load_the_files(folder, split, content):
    path = str(annotation_path(folder, split))
    official = LVIS(path)
    assert len(official.get_ann_ids()) == len(content["annotations"])
    for annotation in content["annotations"][:20]:
        assert official.ann_to_mask(annotation).sum() == annotation["area"]
    fast = hotcoco.LVIS(path)
    assert sorted(fast.get_img_ids()) == official.get_img_ids()
    assert sorted(fast.get_ann_ids()) == sorted(official.get_ann_ids())
    assert sorted(fast.get_cat_ids()) == sorted(official.get_cat_ids())


# Objects


def test_box_and_area_are_those_of_the_mask(content):
    for image in content["images"]:
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for annotation, mask in zip(annotations, masks_of(content, image), strict=True):
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            width, height = columns.max() + 1 - left, rows.max() + 1 - top
            assert annotation["bbox"] == [left, top, width, height]
            assert annotation["area"] == mask.sum() >= 16


def test_no_pixel_belongs_to_two_objects(content):
    for image in content["images"]:
        assert masks_of(content, image).sum(axis=0).max(initial=0) <= 1


def test_objects_occlude_one_another(content):
    boxes_overlap = False
    for image in content["images"]:
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        overlaps = coco_mask.iou(np.array(boxes), np.array(boxes), [0] * len(boxes))
        boxes_overlap |= (overlaps > 0.2).sum() > len(boxes)
    assert boxes_overlap


def test_masks_have_the_holes_of_their_characters(folder):
    content = read(folder, "train")
    with_hole = set()
    for annotation in content["annotations"]:
        contours = coco_mask.decode(annotation["segmentation"])
        _, hierarchy = cv2.findContours(contours, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if (hierarchy[0, :, 3] >= 0).any():
            with_hole.add(annotation["category_id"])
    characters = glyph_characters(SMALL.classes)
    assert {characters.index(character) + 1 for character in "A8RO"} <= with_hole


def test_masks_cover_what_the_picture_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_vivid_colours", lambda rng: np.full((2, 3), 255.0))
    monkeypatch.setattr(images, "_muted_colours", lambda rng: np.zeros((2, 3)))
    options = GlyphOptions(train_images=5, val_images=1, size=256, not_exhaustive=0)
    generate(tmp_path, options)
    content = read(tmp_path, "train")
    for image in content["images"]:
        shown = picture_of(tmp_path, image)[:, :, 0] > 127
        annotated = masks_of(content, image).any(axis=0)
        # Softened corners are all that may differ.
        assert (shown & annotated).sum() >= 0.98 * (shown | annotated).sum()


def test_a_smaller_scale_range_gives_smaller_objects(tmp_path, folder):
    options = GlyphOptions(train_images=20, val_images=1, size=128, min_scale=0.1, max_scale=0.2)
    generate(tmp_path, options)
    for annotation in read(tmp_path, "train")["annotations"]:
        assert max(annotation["bbox"][2:]) <= 0.2 * 128 * math.sqrt(2) * 1.25
    longest = [max(a["bbox"][2:]) / SMALL.size for a in read(folder, "train")["annotations"]]
    assert max(longest) > 0.2 * math.sqrt(2) * 1.25


# Federated labels


def test_negative_classes_are_absent_and_as_many_as_asked_for(content):
    for image in content["images"]:
        negatives = image["neg_category_ids"]
        present = categories_of(content, image)
        assert negatives == sorted(set(negatives))
        assert not present & set(negatives)
        assert len(negatives) == min(SMALL.negatives, SMALL.classes - len(present))
        assert set(negatives) <= set(range(1, SMALL.classes + 1))


def test_not_exhaustive_classes_are_present_and_modestly_many(content):
    listed = [image["not_exhaustive_category_ids"] for image in content["images"]]
    for image, classes in zip(content["images"], listed, strict=True):
        assert len(classes) <= 1
        assert set(classes) <= categories_of(content, image)
    assert 0 < sum(map(len, listed)) < len(listed)


def test_a_not_exhaustive_class_has_an_object_that_is_seen_but_not_annotated(tmp_path):
    common = dict(classes=5, train_images=12, val_images=1, max_objects=4)
    generate(tmp_path / "all", GlyphOptions(not_exhaustive=0, **common))
    generate(tmp_path / "some", GlyphOptions(not_exhaustive=1, **common))
    all_labelled, some_labelled = read(tmp_path / "all", "train"), read(tmp_path / "some", "train")
    assert not any(image["not_exhaustive_category_ids"] for image in all_labelled["images"])
    assert all(image["not_exhaustive_category_ids"] for image in some_labelled["images"])
    assert instance_counts(all_labelled, 5).tolist() == instance_counts(some_labelled, 5).tolist()
    for before, after in zip(all_labelled["images"], some_labelled["images"], strict=True):
        pictures = picture_of(tmp_path / "all", before), picture_of(tmp_path / "some", after)
        changed = cv2.absdiff(*pictures).max(axis=2) > 60
        outside_of_labels = ~masks_of(some_labelled, after).any(axis=0)
        assert changed.sum() >= 10
        assert (changed & outside_of_labels).sum() >= 0.9 * changed.sum()


# Counts


def test_category_counts_are_those_of_the_training_file_in_both_files(folder, content):
    train = read(folder, "train")
    images_with = {category["id"]: set() for category in train["categories"]}
    for annotation in train["annotations"]:
        images_with[annotation["category_id"]].add(annotation["image_id"])
    instances = instance_counts(train, SMALL.classes)
    for category, instance_count in zip(content["categories"], instances, strict=True):
        assert category["image_count"] == len(images_with[category["id"]])
        assert category["instance_count"] == instance_count >= 1


def test_frequency_groups_follow_the_thresholds(tmp_path):
    generate(
        tmp_path, GlyphOptions(train_images=60, val_images=1, rare_at_most=8, common_at_most=20)
    )
    groups = set()
    for category in read(tmp_path, "val")["categories"]:
        count = category["image_count"]
        assert category["frequency"] == ("r" if count <= 8 else "c" if count <= 20 else "f")
        groups.add(category["frequency"])
    assert groups == {"r", "c", "f"}


@pytest.mark.parametrize(
    ("tail", "curve"),
    [
        ("exponential", exponential_curve(6, 20)),
        ("zipf", zipf_curve(6, 1)),
        ("lvis_v1", lvis_v1_curve(6)),
    ],
)
def test_training_counts_follow_the_curve_and_validation_counts_are_balanced(tmp_path, tail, curve):
    generate(tmp_path, GlyphOptions(**{**vars(SPARSE), "tail": tail}))
    counts = np.sort(instance_counts(read(tmp_path, "train"), 6))[::-1]
    assert counts.tolist() == long_tail_counts(curve, int(counts.sum())).tolist()
    assert np.ptp(instance_counts(read(tmp_path, "val"), 6)) <= 1


def test_a_long_tailed_validation_split_has_the_tail_of_training(tmp_path):
    options = GlyphOptions(**{**vars(SPARSE), "val_images": 50, "val_tail": "long_tailed"})
    generate(tmp_path, options)
    train, val = (instance_counts(read(tmp_path, split), 6) for split in ("train", "val"))
    assert val.max() > 4 * val.min()
    assert (np.diff(val[np.argsort(train)]) >= 0).all()


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40),
    st.integers(0, 500),
    st.integers(0, 3),
)
def test_long_tail_counts_share_out_the_total(curve, surplus, at_least):
    curve = np.sort(curve)[::-1]
    total = surplus + at_least * len(curve)
    counts = long_tail_counts(curve, total, at_least=at_least)
    assert counts.sum() == total
    assert counts.min() >= at_least
    assert (np.diff(counts) <= 0).all()
    above = counts > at_least
    if above.any():
        # One scale fits all classes above the floor, up to rounding.
        lowest, highest = ((counts[above] + rounding) / curve[above] for rounding in (-1, 1))
        assert lowest.max() <= highest.min() * (1 + 1e-9)


@pytest.mark.parametrize("imbalance", [1, 20, 100])
def test_exponential_counts_have_the_imbalance(imbalance):
    curve = exponential_curve(10, imbalance)
    assert curve[0] == imbalance and curve[-1] == 1
    np.testing.assert_allclose(curve[1:] / curve[:-1], imbalance ** (-1 / 9))
    counts = long_tail_counts(curve, 1_000_000)
    assert counts[0] / counts[-1] == pytest.approx(imbalance, rel=1e-3)


def test_zipf_counts_fall_with_the_power_of_the_rank():
    curve = zipf_curve(50, 1.5)
    np.testing.assert_allclose(curve * np.arange(1, 51) ** 1.5, 1)
    assert zipf_curve(5, 0).tolist() == [1] * 5


def test_the_lvis_curve_is_near_lvis():
    image_counts = np.sort([category["image_count"] for category in LVIS_CATEGORY_IMAGE_COUNT])[
        ::-1
    ]
    curve = lvis_v1_curve(len(image_counts))
    rounded = np.rint(curve)
    assert (rounded <= 10).sum() == (image_counts <= 10).sum()
    assert (rounded <= 100).sum() == (image_counts <= 100).sum()
    assert np.abs(np.log(curve / image_counts)).mean() < 0.07
    assert (np.diff(curve) <= 0).all() and curve[-1] == 1


@given(st.integers(1, 50), st.integers(0, 300))
def test_balanced_counts_differ_by_at_most_one(num_classes, total):
    counts = balanced_counts(num_classes, total)
    assert len(counts) == num_classes and counts.sum() == total and np.ptp(counts) <= 1


def test_one_class_is_enough(tmp_path):
    generate(tmp_path, GlyphOptions(classes=1, train_images=2, val_images=1))
    content = read(tmp_path, "train")
    assert {a["category_id"] for a in content["annotations"]} == {1}
    assert all(image["neg_category_ids"] == [] for image in content["images"])


# Glyphs


def test_the_1203_glyphs_look_different():
    """Drawn at another size, and compared another way, than the generator does."""
    font = ImageFont.truetype(glyphs._font_path(), 64)
    bitmaps = []
    for character in glyph_characters(MAX_CLASSES):
        canvas = Image.new("L", (256, 256))
        ImageDraw.Draw(canvas).text((64, 64), character, fill=255, font=font)
        tight = canvas.crop(canvas.getbbox())
        side = max(tight.size)
        square = Image.new("L", (side, side))
        square.paste(tight, ((side - tight.width) // 2, (side - tight.height) // 2))
        bitmaps.append(np.asarray(square.resize((32, 32), Image.Resampling.BOX)).ravel() / 255)
    bitmaps = np.stack(bitmaps).astype(np.float32)
    norms = np.linalg.norm(bitmaps, axis=1)
    similarity = (bitmaps / norms[:, None]) @ (bitmaps / norms[:, None]).T
    np.fill_diagonal(similarity, 0)
    assert len(bitmaps) == MAX_CLASSES
    assert similarity.max() < 0.95


def test_glyphs_have_names_of_their_own_and_fewer_classes_get_the_first_glyphs():
    characters = glyph_characters(MAX_CLASSES)
    names = [class_name(character) for character in characters]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)
    assert names[0] == "latin_capital_letter_a"
    assert glyph_characters(30) == characters[:30]


def test_a_thousand_classes_each_get_an_instance(tmp_path):
    options = GlyphOptions(
        classes=MAX_CLASSES, train_images=130, val_images=3, tail="lvis_v1",
        min_objects=10, max_objects=12, min_scale=0.1, max_scale=0.2,
    )  # fmt: skip
    generate(tmp_path, options)
    content = read(tmp_path, "train")
    assert instance_counts(content, MAX_CLASSES).min() == 1
    assert len({category["name"] for category in content["categories"]}) == MAX_CLASSES


# Reproducibility and repetition


def test_the_same_options_give_the_same_bytes(folder, tmp_path):
    generate(tmp_path, SMALL)
    assert files(tmp_path) == files(folder)


@pytest.mark.e2e
def test_the_number_of_workers_has_no_influence(folder, tmp_path):
    generate(tmp_path, SMALL, workers=2)
    assert files(tmp_path) == files(folder)


def test_another_seed_gives_other_pictures_and_another_tail(folder, tmp_path):
    generate(tmp_path, GlyphOptions(**{**vars(SMALL), "seed": 1}))
    one, other = files(folder), files(tmp_path)
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)
    counts = [instance_counts(read(path, "train"), SMALL.classes) for path in (folder, tmp_path)]
    assert counts[0].argsort().tolist() != counts[1].argsort().tolist()


def test_more_training_images_leave_the_validation_pictures_as_they_are(folder, tmp_path):
    generate(tmp_path, GlyphOptions(**{**vars(SMALL), "train_images": 41}))
    one, other = files(folder), files(tmp_path)
    pictures = [name for name in one if name.startswith("val")]
    assert len(pictures) == SMALL.val_images
    assert all(one[name] == other[name] for name in pictures)


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    assert generate(tmp_path, SPARSE)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not generate(tmp_path, SPARSE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_a_missing_picture_is_drawn_again(tmp_path):
    generate(tmp_path, SPARSE)
    before = files(tmp_path)
    (tmp_path / "val" / "000000000003.jpg").unlink()
    assert generate(tmp_path, SPARSE)
    assert files(tmp_path) == before


def test_other_options_replace_everything(tmp_path):
    generate(tmp_path / "replaced", SMALL)
    generate(tmp_path / "replaced", SPARSE)
    generate(tmp_path / "fresh", SPARSE)
    assert files(tmp_path / "replaced") == files(tmp_path / "fresh")


def test_an_interrupted_run_leaves_no_annotations_and_can_be_repeated(tmp_path, monkeypatch):
    draw = dataset.draw_image

    def interrupted(task, **settings):
        if task.image_id == 7:
            raise KeyboardInterrupt
        return draw(task, **settings)

    generate(tmp_path / "run", SMALL)
    monkeypatch.setattr(dataset, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "run", SPARSE)
    assert not list((tmp_path / "run").glob("*.json"))
    monkeypatch.undo()
    assert generate(tmp_path / "run", SPARSE)
    generate(tmp_path / "fresh", SPARSE)
    assert files(tmp_path / "run") == files(tmp_path / "fresh")


# Errors


def test_a_folder_with_other_pictures_is_refused_and_left_alone(tmp_path):
    (tmp_path / "val").mkdir()
    photo = tmp_path / "val" / "000000000001.jpg"
    photo.write_bytes(b"a photo")
    with pytest.raises(InputError, match="not of a glyph data set"):
        generate(tmp_path, SPARSE)
    assert photo.read_bytes() == b"a photo"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "file"))):
        generate(tmp_path / "file", SPARSE)


def test_too_few_images_for_the_classes_says_how_many_are_enough(tmp_path):
    common = dict(classes=100, val_images=1, min_objects=3, max_objects=5)
    with pytest.raises(InputError, match="100 classes") as error:
        generate(tmp_path / "few", GlyphOptions(train_images=10, **common))
    assert not (tmp_path / "few").exists()
    enough = int(re.search(r"train_images of (\d+)", str(error.value))[1])
    generate(tmp_path / "enough", GlyphOptions(train_images=enough, **common))
    assert instance_counts(read(tmp_path / "enough", "train"), 100).min() == 1


def test_a_class_that_finds_no_place_is_an_error_and_no_annotations_are_written(tmp_path):
    options = GlyphOptions(
        classes=40, train_images=1, val_images=1, size=32, min_objects=40, max_objects=40,
        min_scale=0.9, max_scale=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="found no place"):
        generate(tmp_path, options)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", 0),
        ("classes", MAX_CLASSES + 1),
        ("train_images", 0),
        ("val_images", 0),
        ("size", 31),
        ("seed", -1),
        ("tail", "steep"),
        ("imbalance", 0.5),
        ("imbalance", math.nan),
        ("imbalance", math.inf),
        ("zipf_exponent", -1.0),
        ("val_tail", "none"),
        ("min_objects", 0),
        ("max_objects", 2),
        ("min_scale", 0.01),
        ("max_scale", 0.1),
        ("max_scale", 1.5),
        ("negatives", -1),
        ("not_exhaustive", 1.1),
        ("rare_at_most", -1),
        ("common_at_most", 5),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; choose"):
        GlyphOptions(**{name: value})


def test_a_number_of_workers_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="workers is 0"):
        generate(tmp_path, SPARSE, workers=0)


@pytest.mark.e2e
def test_the_command_line_writes_once_and_reports_errors(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(MAKE_GLYPHS), "--out", str(tmp_path / "set"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    small = ("--train-images", "20", "--val-images", "5", "--imbalance", "5", "--workers", "2")
    first, second = run(*small), run(*small)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "20 images" in first.stdout and "written" in first.stdout
    assert "25/25" in first.stderr
    assert "already there" in second.stdout
    assert read(tmp_path / "set", "train")["info"]["options"]["imbalance"] == 5
    refused = run("--classes", "5000")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "5000" in refused.stderr
