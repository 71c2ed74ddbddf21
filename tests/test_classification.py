"""Long-tailed classification: data, criteria, samplers, training in one and in two stages."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import datasets as tv_datasets

from balms_det import bilevel
from balms_det.classification import ClassificationCriterion, Trainer, load_config
from balms_det.classification import data as data_module
from balms_det.classification.data import FileBatches, digits, load_split
from balms_det.classification.evaluate import evaluate, tail_share
from balms_det.classification.long_tail import (
    class_images,
    class_stats,
    draw_subset,
    long_tailed_counts,
)
from balms_det.classification.networks import BACKBONES
from balms_det.classification.sampling import (
    MetaSampler,
    ShuffleSampler,
    class_power_sampler,
)
from balms_det.classification.streams import Use, stream, stream_seed
from balms_det.classification.trainer import learning_rate
from balms_det.config import config_file
from balms_det.losses.registry import LOSSES
from balms_det.runtime.errors import InputError

CONFIGS = Path(config_file("classification/bases/digits_lt.yaml")).parents[1]
COUNTS = np.array([40, 12, 5, 1])


def config(name="digits_lt+softmax", *opts):
    return load_config(name, [str(opt) for opt in opts])


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Runs write to output/ below the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short(name="digits_lt+softmax", *opts):
    return config(name, "SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 0, "DEVICE", "cpu", *opts)


# ---- long tail


@pytest.mark.parametrize(
    "largest, imbalance, first, last",
    [(5000, 200, 5000, 25), (5000, 100, 5000, 50), (5000, 10, 5000, 500), (125, 1000, 125, 1)],
)
def test_counts_fall_exponentially_from_the_largest_and_never_below_one(
    largest, imbalance, first, last
):
    counts = long_tailed_counts(largest, 10, imbalance)
    expected = [max(int(largest * (1 / imbalance) ** (i / 9) + 1e-9), 1) for i in range(10)]
    assert counts.tolist() == expected
    assert (counts[0], counts[-1]) == (first, last)


def test_equal_counts_without_imbalance_and_no_imbalance_below_one():
    assert long_tailed_counts(7, 4, 1).tolist() == [7] * 4
    assert long_tailed_counts(7, 1, 100).tolist() == [7]
    with pytest.raises(InputError, match="IMBALANCE is 0.5"):
        long_tailed_counts(7, 4, 0.5)


def test_a_subset_has_its_counts_follows_its_seed_and_is_nested():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    larger, smaller = np.array([50, 40, 30, 20]), np.array([50, 20, 5, 1])
    drawn = draw_subset(labels, larger, seed=3)
    assert np.bincount(labels[drawn]).tolist() == larger.tolist()
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, draw_subset(labels, larger, seed=3))
    assert not np.array_equal(drawn, draw_subset(labels, larger, seed=4))
    assert set(draw_subset(labels, smaller, seed=3)) < set(drawn)
    with pytest.raises(InputError, match="class 0 has .* 1000 are needed"):
        draw_subset(labels, np.array([1000, 1, 1, 1]), seed=0)


def test_statistics_and_images_of_classes_are_those_of_the_labels():
    labels = np.array([2, 0, 2, 2, 0])
    stats = class_stats(labels, ["a", "b", "c"])
    assert stats.image_counts.tolist() == stats.instance_counts.tolist() == [2, 0, 3]
    images = class_images(labels, 3)
    assert images.image_index.tolist() == [1, 4, 0, 2, 3]
    assert images.image_counts.tolist() == [2, 0, 3]


# ---- data


def test_digits_are_split_into_training_and_balanced_test_images():
    train, test = digits()
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert len(train.labels) + len(test.labels) == 1797
    images = train.read(np.arange(5))
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8 and images.max() == 240
    everything = torch.cat([part.read(np.arange(len(part.labels))) for part in (train, test)])
    assert len(everything.flatten(1).unique(dim=0)) == len(everything)  # none is in both


def write_copies(path, **changed):
    """An archive of JPEG copies, flat colours that say which image it is."""
    arrays = {"class_names": np.array(["red", "green", "blue"])}
    for split, n in (("train", 12), ("test", 3)):
        files = []
        for i in range(n):
            image = Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8))
            file = path.with_name("one.jpg")
            image.save(file)
            files.append(np.frombuffer(file.read_bytes(), np.uint8))
        arrays[f"{split}_jpeg"] = np.concatenate(files)
        arrays[f"{split}_offsets"] = np.cumsum([0] + [len(f) for f in files])
        arrays[f"{split}_labels"] = np.arange(n) % 3
    for key in changed.get("without", ()):
        del arrays[key]
    np.savez(path, **arrays)


def test_jpeg_copies_are_read_at_any_index(tmp_path):
    write_copies(tmp_path / "copies.npz")
    train, test = data_module.cifar("cifar10", str(tmp_path / "copies.npz"))
    assert train.names == ["red", "green", "blue"] and len(test.labels) == 3
    images = train.subset(np.array([9, 3, 6])).read(np.array([2, 0]))
    assert images.shape == (2, 3, 16, 16) and images.is_contiguous()
    assert images.float().mean((1, 2, 3)).round().tolist() == [120, 180]
    assert train.subset(np.array([9, 3, 6])).labels.tolist() == [0, 0, 0]


def test_an_archive_that_is_none_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    write_copies(tmp_path / "partly.npz", without=["test_labels"])
    for name, reason in (("text", "no archive"), ("partly", "test_labels"), ("none", "No such")):
        with pytest.raises(InputError, match=f"{name}.npz: this is no archive .*{reason}|{name}"):
            data_module.jpeg_copies(str(tmp_path / f"{name}.npz"))


@pytest.mark.parametrize("name, dataset", [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_that_is_not_there_is_not_downloaded_but_told_how_to(tmp_path, name, dataset):
    with pytest.raises(InputError, match=rf"{dataset}\('.*', download=True\)"):
        data_module.cifar(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_torchvisions_cifar_is_read_as_it_is(monkeypatch):
    class Cifar:
        def __init__(self, root, train, download):
            assert not download
            self.data = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), np.uint8)
            self.targets = [i % 10 for i in range(30)]
            self.classes = list("abcdefghij")

    monkeypatch.setattr(tv_datasets, "CIFAR10", Cifar)
    train, _ = data_module.cifar("cifar10", "somewhere")
    images = train.read(np.array([4, 0]))
    assert torch.equal(images[0], torch.from_numpy(Cifar("", True, False).data[4]).permute(2, 0, 1))


@pytest.fixture
def image_list(tmp_path):
    """A stand-in for ImageNet-LT: pictures of several sizes and a list of the release's form."""
    lines = []
    for i, size in enumerate([(300, 260), (256, 256), (90, 400), (240, 231)]):
        name = f"n{i % 2:03}/picture {i}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), 60 * i, np.uint8)).save(tmp_path / name)
        lines.append(f"{name} {i % 2}")
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def image_list_config(folder, *opts):
    lists = ["DATA.TRAIN_LIST", folder / "list.txt", "DATA.TEST_LIST", folder / "list.txt"]
    small = ["DATA.NUM_CLASSES", 2, "DATA.NUM_WORKERS", 0, "SOLVER.BATCH_SIZE", 3]
    name = "imagenet_lt+balanced_softmax"
    return config(name, "DATA.ROOT", folder, *lists, *small, "DEVICE", "cpu", *opts)


def test_list_files_of_the_release_are_read(image_list):
    split = load_split(image_list_config(image_list).DATA, 100, seed=0)
    assert split.train.labels.tolist() == [0, 1, 0, 1]
    device = torch.device("cpu")
    test = FileBatches(split.test, device, num_workers=0)
    ((images, labels),) = test([torch.tensor([3, 0])])
    assert images.shape == (2, 3, 224, 224) and labels.tolist() == [1, 0]
    assert images.float().mean((1, 2, 3)).tolist() == [180, 0]
    draws = [torch.tensor([2, 1]), torch.tensor([2, 3])]
    train = FileBatches(split.train, device, num_workers=0, seed=0)
    both = [images for images, _ in train(draws)]
    # A resumed run sees what it would have seen, and an image differs from time to time.
    ((resumed, _),) = train(draws[1:], 1)
    assert torch.equal(both[1], resumed)
    assert not torch.equal(both[0][0], both[1][0])


def test_a_training_on_a_list_of_images(image_list, in_folder):
    cfg = image_list_config(image_list, "SOLVER.MAX_ITER", 1)
    trainer = Trainer(cfg)
    trainer.train()
    assert 0 <= trainer.test().accuracy <= 1


@pytest.mark.parametrize("line", ["picture.png", "picture.png 2", "picture.png one", " 1"])
def test_a_wrong_line_of_a_list_is_named(image_list, line):
    (image_list / "list.txt").write_text(f"n000/picture 0.png 0\n{line}\n")
    with pytest.raises(InputError, match=r"list.txt: line 2 is .* label from 0 to 1"):
        load_split(image_list_config(image_list).DATA, 100, seed=0)


def test_missing_lists_and_images_are_named(image_list):
    (image_list / "n000" / "picture 0.png").unlink()
    split = load_split(image_list_config(image_list).DATA, 100, seed=0)
    batches = FileBatches(split.test, torch.device("cpu"), num_workers=0)
    with pytest.raises(InputError, match="0.png: the image cannot be read"):
        next(batches([torch.tensor([0])]))
    (image_list / "list.txt").unlink()
    with pytest.raises(InputError, match="list.txt: the list of images cannot be read"):
        load_split(image_list_config(image_list).DATA, 100, seed=0)


# ---- criterion


def criterion(loss, *opts, counts=COUNTS):
    cfg = config("digits_lt+softmax", "MODEL.LONG_TAIL.LOSS.NAME", loss, *opts)
    labels = np.repeat(np.arange(len(counts)), counts)
    stats = class_stats(labels, [str(i) for i in range(len(counts))])
    return ClassificationCriterion(cfg.MODEL.LONG_TAIL, stats, lambda: 0).double()


def batch(rows=7, classes=4):
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(classes, (rows,), generator=g)


def softmax_oracle(logits, labels, shift):
    """Cross-entropy of shifted logits, by loops in float64."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        z = [value + shift(label, j) for j, value in enumerate(row)]
        total += math.log(sum(math.exp(value) for value in z)) - z[label]
    return total / len(labels)


def ldam_shift(label, j):
    margins = [count**-0.25 for count in COUNTS.tolist()]
    return -0.5 * margins[j] / max(margins) if j == label else 0.0


@pytest.mark.parametrize(
    "loss, shift",
    [
        ("softmax", lambda label, j: 0.0),
        ("balanced_softmax", lambda label, j: math.log(COUNTS[j])),
        ("ldam", ldam_shift),
    ],
)
def test_softmax_losses_are_those_over_the_classes_alone(loss, shift):
    logits, labels = batch()
    value = criterion(loss)(logits, labels)
    assert value.item() == pytest.approx(softmax_oracle(logits, labels, shift), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    # What raises one logit lowers the others: the background takes no part.
    assert gradient.sum(1).abs().max() < 1e-7


def test_focal_loss_is_that_of_independent_classes():
    logits, labels = batch()
    targets = F.one_hot(labels, 4)
    p_t = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - p_t) ** 2) * p_t.log()).sum() / len(labels)
    value = criterion("focal", "MODEL.LONG_TAIL.LOSS.FOCAL.ALPHA", -1.0)(logits, labels)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


WITH_BACKGROUND = {"seesaw", "seesaw_pcb", "bags", "eqlv2", "eqlv2_pcb", "acsl", "ecm"}


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - WITH_BACKGROUND))
def test_every_loss_without_logits_for_the_background_trains_a_classifier(loss):
    logits, labels = batch()
    ours = criterion(loss)
    torch.manual_seed(0)
    value = ours(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all() and gradient.abs().max() > 0
    probs = ours.probs(logits)
    assert probs.shape == (7, 4) and torch.equal(probs.argmax(1), logits.argmax(1))
    assert ours.initial_bias(0.1).shape == (4,)


def test_seesaw_trains_a_classifier_without_its_objectness():
    logits, labels = batch()
    ours = criterion("seesaw", "MODEL.LONG_TAIL.LOSS.SEESAW.OBJECTNESS", False)
    (gradient,) = torch.autograd.grad(ours(logits, labels), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", sorted(WITH_BACKGROUND))
def test_losses_that_tell_objects_from_background_are_refused(loss):
    with pytest.raises(InputError, match=f"{loss}.*background.*choose another loss"):
        criterion(loss)


def test_softmax_probabilities_are_those_of_the_classes():
    logits, _ = batch()
    probs = criterion("balanced_softmax").probs(logits)
    torch.testing.assert_close(probs, logits.softmax(1).float())


# ---- evaluation


def test_accuracy_by_class_and_by_number_of_training_images():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    predictions = torch.tensor([0, 0, 1, 0, 2, 2, 2, 0])
    probs = F.one_hot(predictions, 5).double()
    result = evaluate(predictions, probs, labels, np.array([101, 100, 20, 19, 1]))
    assert result.accuracy == 5 / 8
    assert result.per_class == [1.0, 0.5, 1.0, 0.0, None]
    assert (result.many, result.medium, result.few) == (1.0, 0.75, 0.0)
    assert result.marginal == result.predicted == [0.5, 0.125, 0.375, 0.0, 0.0]
    assert evaluate(predictions, probs, labels, np.full(5, 9)).many is None


def test_the_marginal_of_a_sigmoid_sums_to_one():
    probs = torch.rand(20, 3) * 0.1
    result = evaluate(probs.argmax(1), probs, torch.zeros(20, dtype=torch.int64), np.ones(3))
    assert sum(result.marginal) == pytest.approx(1)


def test_the_tails_share_is_that_of_the_rarer_half():
    assert tail_share([0.4, 0.3, 0.2, 0.1]) == pytest.approx(0.3)
    assert tail_share([0.5, 0.3, 0.2]) == pytest.approx(0.35)
    assert tail_share([0.25] * 4) == tail_share([0.2] * 5) == pytest.approx(0.5)


# ---- samplers


def test_no_two_streams_of_random_numbers_are_the_same():
    keys = [(s, use, place) for s in range(5) for use in Use for place in range(200)]
    keys += [(2**32 - 1, use, 2**31) for use in Use]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    # What the generator gives, too: it does not look at all bits of a seed.
    first = {tuple(torch.rand(2, generator=stream(*key)).tolist()) for key in keys}
    assert len(first) == len(keys)


def test_a_shuffled_epoch_has_every_example_once_and_any_iteration_can_be_asked_for():
    sampler = ShuffleSampler(10, 4, seed=1)
    stream = torch.cat([sampler.draw(i) for i in range(15)])
    epochs = stream.reshape(6, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(ShuffleSampler(10, 4, seed=1).draw(7), stream[28:32])
    # A batch that is larger than the data set goes on through the next epochs.
    assert sorted(ShuffleSampler(3, 8, seed=1).draw(0).bincount().tolist()) == [2, 3, 3]


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_classes_are_drawn_in_proportion_to_a_power_of_their_counts(power):
    labels = np.repeat(np.arange(4), COUNTS)
    sampler = class_power_sampler(labels, 4, power, 20000, seed=0)
    drawn = sampler.draw(0)
    share = np.bincount(labels[drawn.numpy()]) / 20000
    assert np.allclose(share, COUNTS**power / (COUNTS**power).sum(), atol=0.015)
    assert torch.equal(drawn, sampler.draw(0)) and not torch.equal(drawn, sampler.draw(1))
    head = drawn[torch.from_numpy(labels)[drawn] == 0].bincount(minlength=40)
    assert head.min() > 0.5 * head.float().mean()  # every image of a class alike


def meta_sampler(batch_size=600, counts=COUNTS):
    meta = config("digits_lt+balms").SOLVER.META
    labels = np.repeat(np.arange(len(counts)), counts)
    return MetaSampler(labels, len(counts), meta, batch_size, seed=0), labels


def test_the_meta_sampler_draws_classes_by_count_times_rate():
    sampler, labels = meta_sampler(20000)
    share = np.bincount(labels[sampler.draw(0).numpy()]) / 20000
    assert np.allclose(share, COUNTS / COUNTS.sum(), atol=0.015)  # equal rates of one half
    with torch.no_grad():
        sampler.rate_logits.copy_(torch.tensor([-math.log(39), 0, 0, 0]))  # rates 1/40 and 1/2
    share = np.bincount(labels[sampler.draw(0).numpy()]) / 20000
    assert np.allclose(share, np.array([2, 12, 5, 1]) / 20, atol=0.015)


def test_draws_that_run_ahead_are_updated_in_their_order():
    ahead, in_turn = (meta_sampler(batch_size=8)[0] for _ in range(2))
    head = torch.nn.Linear(3, 4).double()
    g = torch.Generator().manual_seed(2)
    sgd = {"lr": 0.1, "momentum": 0.9, "nesterov": False}

    def update(sampler, labels):
        draws = torch.randn(2, 8, 4, generator=g.manual_seed(2), dtype=torch.float64)
        meta = torch.randn(6, 3, generator=g, dtype=torch.float64), torch.arange(6) % 4
        sampler.update(head, sgd, (draws[0][:, :3], draws[1], labels), meta, F.cross_entropy)
        return sampler.rate_logits.grad.clone()

    labels = torch.arange(8) % 4
    for i in range(2):
        ahead.draw(i)
    in_turn.draw(0)
    assert torch.equal(update(ahead, labels), update(in_turn, labels))


def test_the_meta_set_is_balanced_and_from_the_training_images():
    sampler, labels = meta_sampler()
    drawn = torch.cat([sampler.meta_set.draw(i) for i in range(200)])
    assert drawn.max() < len(labels)
    share = np.bincount(labels[drawn.numpy()]) / len(drawn)
    assert np.allclose(share, 0.25, atol=0.02)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_meta_update_is_the_derivative_through_the_step_by_automatic_differentiation(nesterov):
    """The oracle writes the straight-through choice into the loss and differentiates twice."""
    sampler, labels = meta_sampler()
    indices = sampler.draw(0)
    batch_labels = torch.from_numpy(labels)[indices]
    g = torch.Generator().manual_seed(5)
    head = torch.nn.Linear(3, 4).double()
    features = torch.randn(len(indices), 3, generator=g, dtype=torch.float64)
    meta = torch.randn(50, 3, generator=g, dtype=torch.float64), torch.arange(50) % 4
    shifts = torch.from_numpy(np.log(COUNTS))
    optimizer = torch.optim.SGD(
        head.parameters(), lr=0.3, momentum=0.8, weight_decay=0.01, nesterov=nesterov
    )
    F.cross_entropy(head(features), batch_labels).backward()
    optimizer.step()  # momenta that are not zero

    # The same noise, now with a graph to the rates.
    psi = sampler.rate_logits.detach().clone().requires_grad_()
    log_weights = bilevel.class_log_weights(torch.from_numpy(COUNTS).double(), psi)
    noise = torch.empty(len(indices), 4, dtype=torch.float64)
    noise.exponential_(generator=stream(0, Use.BATCH, 0))
    relaxed = (log_weights - noise.log()).softmax(1)
    choice = F.one_hot(batch_labels, 4) + relaxed - relaxed.detach()
    rows = F.cross_entropy(head(features) + shifts, batch_labels, reduction="none")
    one_hot = F.one_hot(batch_labels, 4).double()
    class_losses = (rows[:, None] * one_hot).sum(0) / one_hot.sum(0)
    loss = (choice * class_losses).sum() / len(indices)
    parameters = list(head.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    stepped = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        gradient = gradient + 0.01 * parameter
        velocity = 0.8 * optimizer.state[parameter]["momentum_buffer"] + gradient
        stepped.append(parameter - 0.3 * (gradient + 0.8 * velocity if nesterov else velocity))
    meta_loss = F.cross_entropy(F.linear(meta[0], *stepped), meta[1])
    (expected,) = torch.autograd.grad(meta_loss, psi)

    # What the trainer does: the step itself, and then the update with what the step left behind.
    optimizer.zero_grad()
    logits = head(features)
    logits.retain_grad()
    F.cross_entropy(logits + shifts, batch_labels).backward()
    optimizer.step()
    before = sampler.rate_logits.detach().clone()
    (group,) = optimizer.param_groups
    train = features, logits.grad, batch_labels
    sampler.update(head, group, train, meta, F.cross_entropy)
    torch.testing.assert_close(sampler.rate_logits.grad, expected, rtol=1e-8, atol=1e-12)
    moved = sampler.rate_logits.detach() - before
    assert torch.equal(moved.sign(), -expected.sign())  # Adam's first step is the sign


# ---- networks and schedule


@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"resnet152"}))
def test_every_backbone_gives_the_features_it_promises(name):
    build, num_features = BACKBONES[name]
    channels, size = (1, 8) if name == "small" else (3, 32)
    assert build(channels)(torch.zeros(2, channels, size, size)).shape == (2, num_features)


def test_resnet32_has_the_papers_depth_and_size():
    network = BACKBONES["resnet32_cifar"][0](3)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32  # the classifier is the last layer
    # arXiv:1512.03385, table 6: 0.46 million parameters; the classifier has 650.
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 0.46


def test_the_learning_rate_warms_up_and_falls_to_zero():
    solver = config("cifar10_lt+softmax").SOLVER
    rates = [learning_rate(solver, i) for i in (0, 400, 800, 6900, 12999)]
    assert rates == pytest.approx([0.05, 0.075, 0.1, 0.05, 0.0], abs=1e-6)
    second = config("cifar10_lt+balms").SOLVER
    assert second.MAX_ITER == 2000 and learning_rate(second, 0) == 0.1


# ---- training


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(trainer, iteration, monkeypatch):
    step = trainer._step

    def interrupted(*args):
        if trainer.iteration == iteration:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


@pytest.fixture
def first_stage(in_folder):
    trainer = Trainer(short())
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["softmax", "eql", "balms"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(first_stage, method, monkeypatch):
    name = f"digits_lt+{method}"
    whole = Trainer(short(name, "OUTPUT_DIR", "whole"))
    whole.train()
    opts = ["OUTPUT_DIR", "parts", "SOLVER.CHECKPOINT_PERIOD", 2]
    interrupt_at(Trainer(short(name, *opts)), 3, monkeypatch)
    resumed = Trainer(short(name, *opts))
    assert not resumed.resume() and resumed.iteration == 2
    resumed.train()
    assert same(whole.network.state_dict(), resumed.network.state_dict())
    assert whole.rates() == resumed.rates()
    finished = Trainer(short(name, *opts))
    assert finished.resume() and finished.test() == whole.test()
    assert sorted(p.name for p in Path("parts").iterdir()) == ["model_final.pth"]


def test_a_deferred_margin_begins_at_its_iteration(first_stage):
    def trained(start_iter):
        start = "MODEL.LONG_TAIL.LOSS.MARGIN.START_ITER"
        trainer = Trainer(short("digits_lt+balanced_softmax", start, start_iter))
        trainer.train()
        return trainer.network.state_dict()

    plain = first_stage.network.state_dict()  # of softmax, over six iterations
    assert same(trained(6), plain)
    assert not same(trained(5), plain)


@pytest.mark.parametrize(
    "method", ["crt", "lws", "decoupled_balanced_softmax", "balanced_softmax_cbs", "balms"]
)
def test_a_second_stage_changes_the_classifier_and_nothing_else(first_stage, method):
    before = {name: value.clone() for name, value in first_stage.network.state_dict().items()}
    second = Trainer(short(f"digits_lt+{method}"))
    assert np.array_equal(second.train_set.labels, first_stage.train_set.labels)
    start = second.network.classifier.weight.detach().clone()
    second.train()
    after = second.network.state_dict()
    # Statistics of the batch norms too: frozen layers do not learn from what passes them.
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if method == "lws":
        assert changed == set()
        assert not torch.equal(after["classifier.scale.factor"], torch.ones(10))
    else:
        assert changed == {"classifier.weight", "classifier.bias"}
        assert not torch.equal(start, before["classifier.weight"])  # the release starts afresh
    assert (second.rates() is not None) == (method == "balms")


def test_meta_rates_start_at_one_half_and_move(first_stage):
    trainer = Trainer(short("digits_lt+balms"))
    assert trainer.rates() == [0.5] * 10
    trainer.train()
    assert all(rate != 0.5 for rate in trainer.rates())


def test_both_stages_train_on_the_same_images_or_not_at_all(first_stage):
    weights = ["MODEL.WEIGHTS", "output/digits_lt_softmax_if100_seed0/model_final.pth"]
    for opts in (["SEED", 1], ["IMBALANCE", 50]):
        with pytest.raises(InputError, match="trained on other images"):
            Trainer(short("digits_lt+crt", *opts, *weights))


def test_first_stages_that_are_missing_or_something_else_are_named(in_folder):
    with pytest.raises(InputError, match="no checkpoint of a first stage; train it first"):
        Trainer(short("digits_lt+balms"))
    (in_folder / "other.pth").write_text("something else")
    with pytest.raises(InputError, match="other.pth: this is not a checkpoint"):
        Trainer(short("digits_lt+balms", "MODEL.WEIGHTS", "other.pth"))


def test_a_checkpoint_of_another_network_is_refused(first_stage):
    cfg = short("digits_lt+crt", "MODEL.BACKBONE.NAME", "resnet8_cifar_half")
    with pytest.raises(InputError, match="another network .*MODEL.BACKBONE.NAME"):
        Trainer(cfg)


def test_a_checkpoint_of_another_configuration_is_not_resumed(first_stage):
    other = ["OUTPUT_DIR", first_stage.cfg.OUTPUT_DIR, "MODEL.BACKBONE.NAME", "resnet32_cifar"]
    channels = ["MODEL.PIXEL_MEAN", "(0.0,)", "MODEL.PIXEL_STD", "(1.0,)"]
    with pytest.raises(InputError, match="model_final.pth: .* of another configuration; delete it"):
        Trainer(short("digits_lt+softmax", *other, *channels)).resume()


def test_a_diverging_run_is_stopped_with_the_remedy(in_folder):
    cfg = short("digits_lt+softmax", "SOLVER.BASE_LR", 1e30, "SOLVER.LOG_PERIOD", 1)
    with pytest.raises(InputError, match="the loss is (nan|inf) .*SOLVER.BASE_LR"):
        Trainer(cfg).train()


def test_a_backbone_of_torchvision_is_loaded_without_its_classifier(tmp_path):
    from torchvision.models.resnet import BasicBlock, ResNet

    from balms_det.classification.networks import build_network

    pretrained = ResNet(BasicBlock, [1, 1, 1, 1])
    torch.save(pretrained.state_dict(), tmp_path / "resnet10.pth")
    weights = "MODEL.BACKBONE.WEIGHTS"
    cfg = config("imagenet_lt+softmax", weights, tmp_path / "resnet10.pth")
    network = build_network(cfg, 5)
    assert torch.equal(network.backbone.conv1.weight, pretrained.conv1.weight)
    cfg = config("places_lt+softmax", weights, tmp_path / "resnet10.pth")
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "resnet32_cifar"
    with pytest.raises(InputError, match="resnet10.pth: the file cannot be used"):
        build_network(cfg, 5)


@pytest.mark.gpu
def test_both_stages_run_on_a_gpu_as_on_the_cpu(in_folder, device):
    rates = []
    for name in ("cpu", device.type):
        opts = ["DEVICE", name, "OUTPUT_DIR"]
        Trainer(short("digits_lt+softmax", *opts, name)).train()
        weights = ["MODEL.WEIGHTS", f"{name}/model_final.pth"]
        second = Trainer(short("digits_lt+balms", *opts, f"{name}_second", *weights))
        second.train()
        rates.append(torch.tensor(second.rates()))
        assert 0 < second.test().accuracy <= 1
    torch.testing.assert_close(rates[0], rates[1], rtol=0, atol=1e-2)
