"""Augmentation: whole batches get what torchvision gives one image at a time."""

import itertools

import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from balms_det.classification import augment
from balms_det.classification.augment import Augmentation, autoaugment, cutout, random_crop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n, size=32, channels=3):
    """Smooth colours with some noise: operations on histograms need more than noise."""
    g = generator(1)
    coarse = torch.rand(n, channels, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    noise = 0.1 * torch.rand(n, channels, size, size, generator=g)
    return (230 * smooth + 250 * noise).to(torch.uint8)


@pytest.mark.parametrize("pair", range(25))
def test_every_operation_of_the_policy_is_torchvisions(pair, monkeypatch):
    operations, _, choices = augment._policy()
    images = pictures(3)
    reference = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=128)
    for step, sign in itertools.product((0, 1), repeat=2):
        # That one of the two happens and the other does not, whatever their chances.
        probs = torch.tensor([-1.0, 2.0] if step == 0 else [2.0, -1.0])
        params = (pair, probs, torch.tensor([sign, sign]))
        monkeypatch.setattr(AutoAugment, "get_params", staticmethod(lambda n, p=params: p))
        expected = torch.stack([reference(image) for image in images])
        ours = operations[choices[pair, step, 1 - sign]](images)
        # The newer of torchvision's two implementations rounds where the older truncates.
        torch.testing.assert_close(ours.int(), expected.int(), rtol=0, atol=1)


def test_chances_are_the_policys():
    _, chances, choices = augment._policy()
    pairs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert chances.shape == choices.shape[:2] == (25, 2)
    assert torch.equal(chances, torch.tensor([[c for _, c, _ in pair] for pair in pairs]))


def test_images_keep_their_places_and_are_drawn_for_independently(monkeypatch):
    def add(amount):
        return lambda images: images + amount

    # Two pairs: the first adds 1 with certainty and 10 by half, the second 100 with certainty.
    operations = [add(1), add(10), add(100), lambda images: images]
    chances = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    choices = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [2, 2]]])
    monkeypatch.setattr(augment, "_policy", lambda: (operations, chances, choices))
    images = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    images[:2000] = 50
    added = (autoaugment(images, generator()) - images).flatten()
    for half in added.split(2000):
        values, counts = half.unique(return_counts=True)
        assert values.tolist() == [1, 11, 100]
        expected = torch.tensor([500.0, 500.0, 1000.0])
        assert torch.allclose(counts.float(), expected, atol=100)  # over four deviations


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {
        tuple(padded[y : y + 3, x : x + 3].flatten().tolist()) for y in range(3) for x in range(3)
    }
    crops = random_crop(image.expand(500, 1, 3, 3), 1, generator())
    assert {tuple(crop.flatten().tolist()) for crop in crops} == windows


def test_half_of_the_images_are_mirrored():
    image = pictures(1)
    flipped = augment.random_flip(image.expand(1000, -1, -1, -1), generator())
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert ((flipped == image).flatten(1).all(1) ^ mirrored).all()
    assert 400 < mirrored.sum() < 600


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_is_a_square_about_a_pixel(side):
    images = torch.ones(2000, 2, 8, 8, dtype=torch.uint8)
    cut = cutout(images, side, generator()) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    height, width = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].flatten(1).sum(1), height * width)
    assert height.max() == width.max() == side
    # A centre on the first or last pixel leaves about half of the side within.
    assert height.min() == (side + 1) // 2
    assert cut.any(0).all()


def test_all_together_keep_shape_and_type_and_follow_the_generator():
    images = pictures(64)
    everything = Augmentation(crop_padding=4, flip=True, autoaugment=True, cutout=16)
    once, again, other = (everything(images, generator(seed)) for seed in (3, 3, 4))
    assert once.shape == images.shape and once.dtype == torch.uint8
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(Augmentation()(images, generator()), images)


def test_an_empty_batch_stays_empty():
    everything = Augmentation(crop_padding=4, flip=True, cutout=16)
    assert everything(pictures(1)[:0], generator()).shape == (0, 3, 32, 32)
