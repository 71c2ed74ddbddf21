"""The training samplers: what they draw, how often, and that processes share one stream."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

from balms_det.annotations.repeat_factors import (
    ClassImages,
    class_probabilities,
    class_repeat_factors,
    image_probabilities,
    image_repeat_factors,
    instance_aware_frequency,
)
from balms_det.config import add_balms_config
from balms_det.data.samplers import (
    SAMPLERS,
    ClassProbabilityTrainingSampler,
    MetaTrainingSampler,
    build_train_sampler,
)
from balms_det.runtime.errors import InputError

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


# The Meta Sampler


def meta_sampler(rate_logits=None, dicts=DICTS, seed=3, num_classes=K):
    images = ClassImages.from_dataset_dicts(dicts, num_classes)
    if rate_logits is None:
        rate_logits = torch.zeros(num_classes)
    return MetaTrainingSampler(images, rate_logits, seed=seed)


def test_an_image_is_drawn_in_proportion_to_the_mean_rate_of_its_classes():
    rate_logits = torch.tensor([-1.0, 0.5, 2.0, 9.0, -0.3])
    rates = rate_logits.sigmoid().tolist()
    weights = np.array([np.mean([rates[j] for j in set(c)]) if c else 0.0 for c in IMAGE_CLASSES])
    probs, number = weights / weights.sum(), 20_000
    observed = np.bincount(draw(meta_sampler(rate_logits), number), minlength=len(DICTS)) / number
    assert (np.abs(observed - probs) <= 5 * np.sqrt(probs * (1 - probs) / number)).all()


def test_rates_that_change_count_from_the_next_draw_on():
    rate_logits = torch.zeros(K)
    stream = iter(meta_sampler(rate_logits))
    assert len(set(itertools.islice(stream, 200))) == 8
    rate_logits.copy_(torch.tensor([-60.0, -60, -60, 0, 60]))
    assert set(itertools.islice(stream, 200)) == {5, 6}  # the images of class 4


def test_draws_are_remembered_until_they_are_taken():
    sampler = meta_sampler()
    indices = draw(sampler, 50)
    for index in reversed(indices):
        taken = sampler.take(index)
        assert taken.index == index
        assert taken.drawn_class in IMAGE_CLASSES[index]
        assert taken.relaxed.argmax() == taken.drawn_class
        assert taken.relaxed.sum() == pytest.approx(1)
    with pytest.raises(KeyError):
        sampler.take(indices[0])


def test_an_image_drawn_twice_is_taken_in_the_order_of_its_draws():
    dicts = [{"annotations": [{"category_id": j} for j in range(K)]}]
    sampler = meta_sampler(dicts=dicts)
    draw(sampler, 5)
    expected = [tuple(d["relaxed"].tolist()) for d in sampler.state_dict()["pending"]]
    assert [tuple(sampler.take(0).relaxed.tolist()) for _ in range(5)] == expected


@pytest.mark.parametrize("position", [0, 5, 255, 256, 300])
def test_a_stream_goes_on_from_its_state_with_what_was_drawn_ahead(position):
    sampler = meta_sampler()
    stream = iter(sampler)
    for index in list(itertools.islice(stream, position)):
        sampler.take(index)
    ahead = list(itertools.islice(stream, 3))  # asked for by a loader, and not trained on
    other = meta_sampler(seed=3)
    other.load_state_dict(sampler.state_dict())
    resumed = iter(other)
    assert list(itertools.islice(resumed, 3)) == ahead
    for index in ahead:
        first, second = sampler.take(index), other.take(index)
        assert first.drawn_class == second.drawn_class
        assert torch.equal(first.relaxed, second.relaxed)
    assert list(itertools.islice(stream, 300)) == list(itertools.islice(resumed, 300))


def test_streams_of_neighbouring_seeds_share_nothing():
    one, two = (draw(meta_sampler(seed=seed), 2000) for seed in (1, 2))
    assert one[256:512] != two[:256]


def test_what_the_meta_sampler_stores_grows_with_annotations():
    num_images, num_classes = 20_000, 1203
    dicts = [{"annotations": [{"category_id": i % num_classes}]} for i in range(num_images)]
    sampler = meta_sampler(dicts=dicts, num_classes=num_classes)
    next(iter(sampler))
    stored = sum(np.size(v) for v in vars(sampler).values() if isinstance(v, np.ndarray))
    assert num_images <= stored <= 2 * num_images + 3 * num_classes
