"""From class counts to how often images are drawn, against loops and against Detectron2."""

import time

import numpy as np
import oracles
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from balms_det.annotations.repeat_factors import (
    ClassImages,
    class_probabilities,
    class_repeat_factors,
    expected_counts,
    image_frequency,
    image_probabilities,
    image_repeat_factors,
    instance_aware_frequency,
)
from balms_det.runtime.errors import InputError

K = 5
# Class 3 never occurs; images 2 and 7 have no annotations.
IMAGE_CLASSES = [[0, 0, 1], [0], [], [0, 2, 2, 2], [0, 1], [4], [0, 4, 0, 4], [], [0], [0, 1, 1]]


def dataset_dicts(image_classes):
    return [
        {"annotations": [{"category_id": j, "iscrowd": 0} for j in classes]}
        for classes in image_classes
    ]


def class_images(image_classes=IMAGE_CLASSES, num_classes=K):
    return ClassImages.from_dataset_dicts(dataset_dicts(image_classes), num_classes)


image_classes_strategy = st.lists(
    st.lists(st.integers(0, K - 1), max_size=6), min_size=1, max_size=12
).filter(any)


def test_layout_lists_the_images_of_each_class_and_counts_them():
    images = class_images()
    per_class = np.split(images.image_index, images.offsets[1:-1])
    assert [part.tolist() for part in per_class] == [
        [0, 1, 3, 4, 6, 8, 9],
        [0, 4, 9],
        [3],
        [],
        [5, 6],
    ]
    assert images.image_counts.tolist() == [7, 3, 1, 0, 2]
    assert images.instance_counts.tolist() == [9, 4, 3, 0, 3]
    assert images.num_images == 10


def test_crowds_do_not_count():
    crowd = {"annotations": [{"category_id": 0, "iscrowd": 1}, {"category_id": 1, "iscrowd": 0}]}
    images = ClassImages.from_dataset_dicts([crowd], 2)
    assert images.image_counts.tolist() == [0, 1]


def test_category_outside_the_classes_is_refused_with_its_image():
    with pytest.raises(InputError, match="image 3 .* category_id 2, expected 0 to 1"):
        class_images([[0], [1], [], [2]], num_classes=2)


def test_no_images_and_no_annotations_are_no_error():
    for content in ([], [[], []]):
        images = class_images(content)
        assert images.image_counts.tolist() == [0] * K
        assert image_frequency(images).tolist() == [0.0] * K
        assert instance_aware_frequency(images).tolist() == [0.0] * K
        factors = image_repeat_factors(images, class_repeat_factors(np.zeros(K), 0.1))
        assert factors.tolist() == [1.0] * len(content)


@settings(deadline=None)
@given(image_classes_strategy, st.floats(0, 2), st.booleans())
def test_repeat_factors_agree_with_the_oracle(image_classes, threshold, sqrt):
    images = class_images(image_classes)
    for ours, theirs in zip(
        (image_frequency(images), instance_aware_frequency(images)),
        oracles.frequencies(image_classes, K),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        factors = image_repeat_factors(images, class_repeat_factors(ours, threshold, sqrt=sqrt))
        expected = oracles.repeat_factors(image_classes, theirs, threshold, sqrt)
        np.testing.assert_allclose(factors, expected, rtol=1e-10)


@settings(deadline=None)
@given(image_classes_strategy, st.floats(0, 2), st.booleans())
def test_repeat_factors_equal_detectron2s_to_the_last_bit(image_classes, threshold, sqrt):
    images = class_images(image_classes)
    classes = class_repeat_factors(image_frequency(images), threshold, sqrt=sqrt)
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset_dicts(image_classes), threshold, sqrt=sqrt
    )
    assert torch.equal(torch.from_numpy(image_repeat_factors(images, classes)).float(), theirs)


def test_one_instance_per_image_of_one_class_makes_instance_aware_the_plain_frequency():
    images = class_images([[0], [0], [0], [1]])
    np.testing.assert_allclose(instance_aware_frequency(images), image_frequency(images))


def test_many_instances_in_the_same_images_make_a_class_less_repeated():
    crowded = class_images([[0] * 9, [1], [2], [2]])
    by_image = class_repeat_factors(image_frequency(crowded), 1.0)
    aware = class_repeat_factors(instance_aware_frequency(crowded), 1.0)
    assert by_image[0] == by_image[1]
    assert aware[0] < aware[1]


@settings(deadline=None)
@given(image_classes_strategy, st.sampled_from([0.0, 0.5, 1.0]))
def test_class_then_image_probabilities_agree_with_the_oracle_and_sum_to_one(image_classes, power):
    images = class_images(image_classes)
    probs = image_probabilities(images, class_probabilities(images, power))
    expected = oracles.class_then_image(image_classes, K, power)
    np.testing.assert_allclose(probs, expected, rtol=1e-10)
    assert probs.sum() == pytest.approx(1)


def test_powers_are_class_balanced_square_root_and_plain():
    images = class_images()
    counts = images.image_counts
    assert class_probabilities(images, 0).tolist() == [0.25, 0.25, 0.25, 0, 0.25]
    half = class_probabilities(images, 0.5)
    np.testing.assert_allclose(half / half[2], np.sqrt(counts))
    np.testing.assert_allclose(class_probabilities(images, 1), counts / counts.sum())


def test_images_without_annotations_are_never_drawn_by_class():
    images = class_images()
    probs = image_probabilities(images, class_probabilities(images, 0))
    assert np.flatnonzero(probs == 0).tolist() == [2, 7]


def test_drawing_by_class_from_a_set_without_annotations_is_refused():
    with pytest.raises(InputError, match="SAMPLER_TRAIN"):
        class_probabilities(class_images([[], []]), 0)


def test_equal_weights_expect_the_counts_of_the_data_set():
    images = class_images()
    for scale in (1.0, 0.3):
        weights = np.full(images.num_images, scale)
        np.testing.assert_allclose(expected_counts(images, weights), images.instance_counts)
        np.testing.assert_allclose(expected_counts(images, weights, "images"), images.image_counts)


def test_expected_counts_agree_with_a_loop_over_images():
    images = class_images()
    weights = image_repeat_factors(images, class_repeat_factors(image_frequency(images), 0.4))
    assert weights.max() > 1
    for by in ("instances", "images"):
        expected = np.zeros(K)
        for weight, classes in zip(weights, IMAGE_CLASSES, strict=True):
            for j in classes if by == "instances" else set(classes):
                expected[j] += weight * len(IMAGE_CLASSES) / weights.sum()
        np.testing.assert_allclose(expected_counts(images, weights, by), expected, rtol=1e-10)


def test_class_balanced_sampling_evens_out_single_class_images():
    images = class_images([[0]] * 7 + [[1]] * 2 + [[2]])
    weights = image_probabilities(images, class_probabilities(images, 0))
    expected = [10 / 3, 10 / 3, 10 / 3, 0, 0]
    np.testing.assert_allclose(expected_counts(images, weights), expected)


def lvis_size(num_images=100_000, num_classes=1203, per_image=12):
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, num_classes + 1)
    classes = rng.choice(num_classes, (num_images, per_image), p=share / share.sum())
    return dataset_dicts(classes.tolist())


def test_lvis_size_takes_seconds_and_memory_by_annotation():
    dicts = lvis_size()
    start = time.process_time()
    images = ClassImages.from_dataset_dicts(dicts, 1203)
    factors = class_repeat_factors(instance_aware_frequency(images), 0.001)
    image_repeat_factors(images, factors)
    image_probabilities(images, class_probabilities(images, 0.5))
    assert time.process_time() - start < 10
    num_annotations = 1_200_000
    assert images.instances.sum() == num_annotations
    for array in (images.image_index, images.instances):
        assert len(array) <= num_annotations
    assert len(images.offsets) == 1204
