"""The training samplers: what they draw, how often, and that processes share one stream."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

from balms_det.config import add_balms_config
from balms_det.data.samplers import (
    SAMPLERS,
    ClassProbabilityTrainingSampler,
    build_train_sampler,
)
from balms_det.errors import InputError
from balms_det.repeat_factors import (
    ClassImages,
    class_probabilities,
    class_repeat_factors,
    image_probabilities,
    image_repeat_factors,
    instance_aware_frequency,
)

K = 5
# Class 3 never occurs; images 2 and 7 have no annotations.
IMAGE_CLASSES = [[0, 0, 1], [0], [], [0, 2, 2, 2], [0, 1], [4], [0, 4, 0, 4], [], [0], [0, 1, 1]]
DICTS = [
    {"annotations": [{"category_id": j, "iscrowd": 0} for j in classes]}
    for classes in IMAGE_CLASSES
]


def config(name, seed=3, threshold=0.5):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = name
    cfg.DATALOADER.REPEAT_THRESHOLD = threshold
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    cfg.SEED = seed
    return cfg


def draw(sampler, number):
    return list(itertools.islice(iter(sampler), number))


@pytest.fixture(params=SAMPLERS)
def name(request):
    return request.param


def test_stream_is_that_of_its_seed(name):
    first, again, other = (
        draw(build_train_sampler(config(name, seed), DICTS), 9000) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert set(first) <= set(range(len(DICTS)))


def test_iterating_again_starts_the_same_stream(name):
    sampler = build_train_sampler(config(name), DICTS)
    assert draw(sampler, 100) == draw(sampler, 100)


def test_negative_seed_asks_for_another_stream_each_time(name):
    streams = [draw(build_train_sampler(config(name, -1), DICTS), 200) for _ in range(2)]
    assert streams[0] != streams[1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_interleave_to_the_stream_of_one(name, world_size, monkeypatch):
    number = 6000
    one = draw(build_train_sampler(config(name), DICTS), number * world_size)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(draw(build_train_sampler(config(name), DICTS), number))
    assert [index for group in zip(*parts, strict=True) for index in group] == one


def exact_probabilities(name):
    images = ClassImages.from_dataset_dicts(DICTS, K)
    if name == "InstanceAwareRepeatFactorTrainingSampler":
        factors = class_repeat_factors(instance_aware_frequency(images), 0.5)
        per_image = image_repeat_factors(images, factors)
        return per_image / per_image.sum()
    if name == "MetaTrainingSampler":  # at equal rates
        annotated = np.array([len(classes) > 0 for classes in IMAGE_CLASSES])
        return annotated / annotated.sum()
    power = {"ClassBalancedTrainingSampler": 0, "SquareRootTrainingSampler": 0.5}[name]
    return image_probabilities(images, class_probabilities(images, power))


def test_images_are_drawn_as_often_as_their_probabilities_say(name):
    number = 20_000 if name == "MetaTrainingSampler" else 200_000
    drawn = draw(build_train_sampler(config(name), DICTS), number)
    observed = np.bincount(drawn, minlength=len(DICTS)) / number
    probs = exact_probabilities(name)
    # Five standard deviations of independent draws; the repeat factor's vary less.
    tolerance = 5 * np.sqrt(probs * (1 - probs) / number)
    assert (np.abs(observed - probs) <= tolerance).all()


def test_class_balanced_draws_no_image_without_annotations_and_repeat_factors_keep_them():
    by_class = draw(build_train_sampler(config("ClassBalancedTrainingSampler"), DICTS), 5000)
    assert set(by_class) == set(range(len(DICTS))) - {2, 7}
    repeated = draw(
        build_train_sampler(config("InstanceAwareRepeatFactorTrainingSampler"), DICTS), 5000
    )
    assert set(repeated) == set(range(len(DICTS)))


def test_instance_aware_repeat_factors_are_drawn_by_detectron2s_sampler():
    ours = build_train_sampler(config("InstanceAwareRepeatFactorTrainingSampler"), DICTS)
    images = ClassImages.from_dataset_dicts(DICTS, K)
    factors = class_repeat_factors(instance_aware_frequency(images), 0.5)
    per_image = torch.from_numpy(image_repeat_factors(images, factors)).float()
    theirs = RepeatFactorTrainingSampler(per_image, seed=3)
    assert draw(ours, 500) == draw(theirs, 500)


def test_class_with_one_image_is_drawn_as_often_as_one_with_thousands():
    dicts = [{"annotations": [{"category_id": int(i == 0)}]} for i in range(5000)]
    images = ClassImages.from_dataset_dicts(dicts, 2)
    sampler = ClassProbabilityTrainingSampler(images, class_probabilities(images, 0), seed=1)
    drawn = np.array(draw(sampler, 20_000))
    assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(drawn)) > 4000  # the other images are drawn from all over


def test_what_is_stored_grows_with_annotations_and_not_with_classes_times_images():
    num_images, num_classes = 20_000, 1203
    dicts = [{"annotations": [{"category_id": i % num_classes}]} for i in range(num_images)]
    cfg = config("ClassBalancedTrainingSampler")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    sampler = build_train_sampler(cfg, dicts)
    stored = sum(v.numel() for v in vars(sampler).values() if isinstance(v, torch.Tensor))
    assert num_images <= stored <= num_images + 2 * num_classes + 1


def test_set_without_annotations_is_refused():
    cfg = config("ClassBalancedTrainingSampler")
    with pytest.raises(InputError, match="TrainingSampler"):
        build_train_sampler(cfg, [{"annotations": []}])
