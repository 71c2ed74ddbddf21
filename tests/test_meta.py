"""Learning class rates while training: the gradient, its meta set, processes, and resuming."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from detectron2.engine import HookBase, launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tiny_model import batch, stats_file, tiny_cfg
from training import SeedEveryStep, assert_equal, meta_of

from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.repeat_factors import ClassImages
from balms_det.bilevel import sgd_step
from balms_det.data import MetaTrainingSampler, register_dataset
from balms_det.engine import LongTailCheckpointer, LongTailTrainer
from balms_det.engine.meta import (
    FeatureBank,
    ForwardPass,
    HeadRecord,
    MetaLearning,
    Recorder,
    ReweighterRates,
    SamplerRates,
    plot_rates,
)
from balms_det.losses.criterion import LearnedClassWeights
from balms_det.runtime.processes import exit_without_teardown
from balms_det.synthetic import GlyphOptions, generate

K = 10
SAMPLER = ("DATALOADER.SAMPLER_TRAIN", "MetaTrainingSampler")
REWEIGHTER = ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME", "learned")
CASCADE = ("MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads")
DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"
LOSS = "MODEL.LONG_TAIL.LOSS.NAME"


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    generate(folder, GlyphOptions(train_images=24, val_images=2, size=64, min_scale=0.2))
    register_dataset("meta_train", str(folder / "glyphs_train.json"), str(folder))
    return folder


def cfg_of(folder, *opts):
    cfg = tiny_cfg(
        "DATASETS.TRAIN", ("meta_train",), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.OPTIMIZER", "SGD",
        "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_ITER", 4,
        "OUTPUT_DIR", folder, LOSS, "balanced_softmax", *opts,
    )  # fmt: skip
    return cfg


def decoupled(folder, *opts):
    """A second stage, and the checkpoint that it starts from."""
    first = folder / "first"
    if not first.exists():
        first.mkdir()
        torch.manual_seed(1)
        model = build_model(cfg_of(folder, *opts))
        LongTailCheckpointer(model, str(first)).save("model_final")
    trained = [f"roi_heads.box_predictor.{i}.cls_score" for i in range(3)]
    if "LongTailCascadeROIHeads" not in opts:
        trained = ["roi_heads.box_predictor.cls_score"]
    return cfg_of(
        folder, f"{DECOUPLE}.ENABLED", True, f"{DECOUPLE}.TRAIN_MODULES", trained,
        "MODEL.WEIGHTS", first / "model_final.pth", *opts,
    )  # fmt: skip


def trainer_of(cfg):
    torch.manual_seed(0)
    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer


def run(trainer, steps):
    """A few steps with nothing but the hook under test."""
    hook = meta_of(trainer)
    loop = trainer.loop
    with EventStorage(0) as loop.storage:
        for loop.iter in range(steps):
            loop.run_step()
            hook.after_step()
    return hook


@pytest.fixture(params=[SAMPLER, REWEIGHTER], ids=["sampler", "reweighter"])
def learned(request):
    return request.param


# The gradient


@pytest.mark.parametrize("name", ["balanced_softmax", "balanced_sigmoid"])
@pytest.mark.parametrize("stage", ["decoupled", "joint"])
@pytest.mark.parametrize("meta_loss", ["plain", "shifted"])
def test_gradient_is_that_of_double_backpropagation(
    glyphs, tmp_path, learned, name, stage, meta_loss
):
    opts = (*learned, LOSS, name, "SOLVER.NESTEROV", True, "SOLVER.META.LOSS", meta_loss)
    cfg = (decoupled if stage == "decoupled" else cfg_of)(tmp_path, *opts)
    trainer = trainer_of(cfg)
    hook = meta_of(trainer)
    predictor = trainer.model.roi_heads.box_predictor
    layer, criterion = predictor.cls_score, predictor.criterion
    seen = {"draws": []}

    def recorded(owner, method, key):
        original = getattr(owner, method)

        def wrapper(*args):
            result = original(*args)
            seen[key] = [*seen[key], result] if key == "draws" else result
            return result

        setattr(owner, method, wrapper)

    recorded(hook._meta_set, "batches", "meta")
    if learned is SAMPLER:
        recorded(hook._rates.sampler, "take", "draws")
    run(trainer, 2)
    # What is different about the third step is recorded, and computed again.
    psi = hook._rates.rate_logits.detach().double()
    theta = [layer.weight.detach().double(), layer.bias.detach().double()]
    state = [
        trainer.loop.optimizer.state[p]["momentum_buffer"].double() for p in layer.parameters()
    ]
    group = trainer.loop.optimizer.param_groups[0]
    sgd = {key: group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
    seen["draws"] = []
    loop = trainer.loop
    with EventStorage(2) as loop.storage:
        loop.iter = 2
        loop.run_step()
        record = hook._recorder.records[0]
        hook.after_step()
    features, y = record.features.double(), record.gt_classes
    device = features.device

    def row_losses(logits, classes):
        if name == "balanced_softmax":
            shifts = criterion.loss.shifts.double()
            return losses.shifted_softmax_loss(logits, classes, shifts, reduction="none")
        margins = criterion.loss.margins.double()
        return losses.balanced_sigmoid_loss(logits, classes, margins, reduction="none").sum(1)

    leaf = psi.clone().requires_grad_()
    by_row = torch.nn.Parameter(theta[0]), torch.nn.Parameter(theta[1])
    rows = row_losses(F.linear(features, *by_row), y) / len(y)
    if learned is REWEIGHTER:
        rates, foreground = leaf.sigmoid(), y < K
        weights = torch.ones(len(y), dtype=torch.float64, device=device).masked_scatter(
            foreground, rates[y[foreground]] / rates[y[foreground]].mean()
        )
        loss = (rows * weights).sum()
    else:
        images = torch.zeros(4, dtype=torch.float64, device=device)
        images = images.index_add(0, record.image_of_row, rows).to(leaf)
        drawn = torch.tensor([draw.drawn_class for draw in seen["draws"]])
        relaxed = torch.stack([draw.relaxed for draw in seen["draws"]]).double()
        # d log p_j / d psi_j = 1 - sigma(psi_j), up to what a softmax does not see
        log_weights = F.logsigmoid(leaf)
        moving = (relaxed.log() + log_weights - log_weights.detach()).softmax(1)
        choice = F.one_hot(drawn, K) + moving - moving.detach()
        of_class = [images[drawn == j] if (drawn == j).any() else images for j in range(K)]
        loss = (choice * torch.stack([of_drawn.mean() for of_drawn in of_class])).sum()
    gradients = torch.autograd.grad(loss, by_row, create_graph=True)
    stepped = [sgd_step(t, g, v, **sgd) for t, g, v in zip(theta, gradients, state, strict=True)]
    for parameter, expected in zip(layer.parameters(), stepped, strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-4, atol=1e-6)
    ((meta_features, meta_classes),) = seen["meta"]
    logits = F.linear(meta_features.double(), *stepped)
    if meta_loss == "shifted":
        outer = row_losses(logits, meta_classes).mean()
    elif name == "balanced_softmax":
        outer = losses.softmax_loss(logits, meta_classes)
    else:
        outer = losses.sigmoid_loss(logits, meta_classes)
    (expected,) = torch.autograd.grad(outer, leaf)
    actual = hook._rates.rate_logits.grad.double()
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_cascade_learns_from_all_its_stages(glyphs, tmp_path, learned):
    trainer = trainer_of(decoupled(tmp_path, *learned, *CASCADE))
    hook = run(trainer, 3)
    assert len(hook._recorder.records) == 3
    assert (hook.rates() != 0.5).any()
    if learned is REWEIGHTER:
        weights = [p.criterion.class_weights for p in hook._recorder.predictors]
        assert all(w.rate_logits is weights[0].rate_logits for w in weights)


# What training does is unchanged


def test_listening_and_learning_change_nothing_but_the_rates(glyphs, tmp_path):
    """With rates that do not count the model is, to the bit, that of training without the hook."""
    cfg = decoupled(tmp_path, *REWEIGHTER, "SOLVER.META.BASE_LR", 1e-30)
    learning, plain = trainer_of(cfg), trainer_of(cfg)
    torch.manual_seed(5)
    run(learning, 3)
    torch.manual_seed(5)
    loop = plain.loop
    with EventStorage(0) as loop.storage:
        for loop.iter in range(3):
            loop.run_step()
    assert_equal(learning.model.state_dict(), plain.model.state_dict())


def test_meta_forward_pass_moves_no_statistics_state_or_gradient(tmp_path):
    model = build_model(tiny_cfg(LOSS, "loce", "MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path)))
    model.train()
    before = copy.deepcopy(model.state_dict())
    recorder = Recorder(model)
    ((features, classes),) = ForwardPass(model, recorder, [batch()]).batches([])
    assert_equal(before, model.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert features.shape == (len(classes), 256) and not features.requires_grad
    with EventStorage():
        model(batch())
    assert any(not torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_recorder_sees_each_rows_image_and_its_share_of_the_gradient(tmp_path):
    opts = (LOSS, "softmax", "MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path))
    model = build_model(tiny_cfg(*opts)).train()
    recorder = Recorder(model)
    inputs = [{**image, "dataset_index": i} for i, image in zip((7, 3), batch(), strict=True)]
    with EventStorage():
        sum(model(inputs).values()).backward()
    (record,) = recorder.records
    assert recorder.dataset_indices == [7, 3]
    assert record.image_of_row.unique().tolist() == [0, 1]
    assert torch.equal(record.image_of_row, record.image_of_row.sort().values)
    layer = model.roi_heads.box_predictor.cls_score
    torch.testing.assert_close(record.row_gradients.sum(0), layer.bias.grad)
    torch.testing.assert_close(record.row_gradients.T @ record.features, layer.weight.grad)


# The bank of features


def record_of(classes, value, depth=3):
    classes = torch.tensor(classes)
    features = torch.full((len(classes), depth), float(value)) + torch.arange(len(classes))[:, None]
    return HeadRecord(features, classes, torch.zeros(len(classes), dtype=torch.int64))


def test_bank_draws_classes_alike_and_never_from_the_batch_at_hand():
    bank = FeatureBank(num_classes=3, per_class=2, seed=0)
    ((features, classes),) = bank.batches([record_of([0] * 90 + [1] * 9 + [2], 0)])
    assert len(features) == len(classes) == 0
    drawn, counts = [], torch.zeros(4)
    for step in range(1, 40):
        ((features, classes),) = bank.batches([record_of([0] * 90 + [1] * 9 + [2, 3], 1000 * step)])
        drawn.append(features)
        counts += torch.bincount(classes, minlength=4)
        assert (features < 1000 * step).all()
    assert counts[3] == 38  # of each batch but the first, which had no background
    share = counts[:3] / counts[:3].sum()
    assert ((share - 1 / 3).abs() < 0.05).all()


def test_bank_keeps_the_last_features_of_each_class():
    bank = FeatureBank(num_classes=2, per_class=2, seed=0)
    bank.batches([record_of([0, 0, 0, 1], 10)])  # of class 0: 10, 11, 12
    bank.batches([record_of([1], 50)])  # of class 1: 13, 50
    bank.batches([record_of([1, 1, 1, 1, 1], 60)])  # of class 1: 60 to 64
    ((features, classes),) = bank.batches([record_of([0] * 200, 0)])
    values = {j: set(features[classes == j, 0].tolist()) for j in (0, 1)}
    assert values == {0: {11.0, 12.0}, 1: {63.0, 64.0}}


def test_bank_goes_on_from_its_state():
    bank, other = (FeatureBank(num_classes=3, per_class=2, seed=s) for s in (0, 1))
    bank.batches([record_of([0, 1, 2, 3], 5)])
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    first, second = (b.batches([record_of([2, 1, 1, 3], 7)])[0] for b in (bank, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Checkpoints


class Images:
    """Endless batches, each known by its iteration, for loaders that start over on resuming."""

    def __init__(self, start):
        self._start = start

    def __iter__(self):
        for iteration in itertools.count(self._start):
            yield batch(seed=iteration)


def train(cfg, *, stop_after=None, resume=False):
    """As tools/train_net.py; Detectron2's own samplers, which start over, give way to Images."""
    torch.manual_seed(0)
    trainer = LongTailTrainer(cfg)
    trainer.loop.register_hooks([SeedEveryStep()])
    trainer.resume_or_load(resume=resume)
    meta_set = meta_of(trainer)._meta_set
    if isinstance(meta_set, ForwardPass):
        meta_set._loader = Images(100 + trainer.start_iter)
    if cfg.DATALOADER.SAMPLER_TRAIN != "MetaTrainingSampler":
        trainer.loop.data_loader = Images(trainer.start_iter)
    iter(trainer.loop._data_loader_iter)  # which takes a seed from PyTorch's generator
    trainer.max_iter = stop_after or trainer.max_iter
    trainer.train()
    return trainer


@pytest.mark.parametrize("stage", ["decoupled", "joint"])
def test_resumed_training_has_the_rates_of_training_without_a_break(
    glyphs, tmp_path, learned, stage
):
    def cfg(name):
        cfg = (decoupled if stage == "decoupled" else cfg_of)(tmp_path, *learned)
        cfg.OUTPUT_DIR = str(tmp_path / name)
        cfg.SOLVER.CHECKPOINT_PERIOD = 2
        return cfg

    whole = train(cfg("whole"))
    train(cfg("parts"), stop_after=2)
    resumed = train(cfg("parts"), resume=True)
    assert resumed.start_iter == 2
    assert (meta_of(whole).rates() != 0.5).any()
    assert torch.equal(meta_of(whole).rates(), meta_of(resumed).rates())
    assert_equal(whole.model.state_dict(), resumed.model.state_dict())


def test_rates_are_logged_and_drawn(glyphs, tmp_path):
    cfg = decoupled(tmp_path, *SAMPLER, "SOLVER.MAX_ITER", 20)
    histograms = []

    class Watch(HookBase):
        def after_step(self):
            histograms.extend(h["tag"] for h in self.trainer.storage._histograms)

    trainer = trainer_of(cfg)
    trainer.loop._hooks.insert(1, Watch())
    trainer.loop._hooks[1].trainer = trainer.loop
    trainer.train()
    assert histograms == ["meta/rates"]
    written = json.loads((Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()[-1])
    rates, latest = meta_of(trainer).rates(), trainer.loop.storage.latest()
    for name in ("min", "mean", "max"):
        expected = pytest.approx(getattr(rates, name)().item())
        assert latest[f"meta/rate_{name}"][0] == expected
        assert f"meta/rate_{name}" in written
    assert (Path(cfg.OUTPUT_DIR) / "meta_rates.png").stat().st_size > 1000


def test_plot_takes_classes_without_images(tmp_path):
    stats = ClassStats.load(stats_file(tmp_path))
    none = np.zeros(K, dtype=np.int64)
    stats = replace(stats, image_counts=none, instance_counts=none)
    plot_rates(torch.full((K,), 0.5), stats, str(tmp_path / "rates.png"))
    assert (tmp_path / "rates.png").exists()


# Several processes


def learning_on(images, learned, steps=3):
    """Learn from made-up records of the given ones among four images of six rows each."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, K + 1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    dicts = [{"annotations": [{"category_id": j % K}]} for j in range(4 * K)]
    weights = LearnedClassWeights(K)
    predictor = SimpleNamespace(cls_score=layer, criterion=SimpleNamespace(class_weights=weights))
    recorder = SimpleNamespace(predictors=[predictor], records=[], dataset_indices=[])
    sampler = MetaTrainingSampler(ClassImages.from_dataset_dicts(dicts, K), torch.zeros(K), seed=1)
    drawn = iter(sampler)
    rates = SamplerRates(sampler, 1.0) if learned is SAMPLER else ReweighterRates([predictor])
    meta_set = SimpleNamespace()
    hook = MetaLearning(
        recorder, rates, meta_set, [losses.softmax_loss], lr=0.1, class_stats=None, output_dir=""
    )
    with EventStorage(0) as storage:
        hook.trainer = SimpleNamespace(optimizer=optimizer, storage=storage, iter=0)
        for _ in range(steps):
            features = torch.randn(4, 6, 5, generator=generator)[images].flatten(0, 1)
            # Every other image has the same classes, so that each half has the same sum of rates.
            first, second = torch.arange(6), torch.tensor([6, 7, 8, 9, K, K])
            gt = torch.stack([first, first, second, second])
            gt = gt[images].flatten()
            meta_features = torch.randn(4, 3, 5, generator=generator)[images].flatten(0, 1)
            meta_classes = torch.randint(K, (4, 3), generator=generator)[images].flatten()
            row = torch.arange(len(images)).repeat_interleave(6)
            errors = torch.randn(4, 6, K + 1, generator=generator)[images].flatten(0, 1) / len(gt)
            recorder.records = [HeadRecord(features, gt, row, errors)]
            recorder.dataset_indices = [next(drawn) for _ in images]
            meta_set.batches = lambda records, m=(meta_features, meta_classes): [m]
            hook.after_step()
    return hook.rates()


@exit_without_teardown
def _learn_in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rates = [learning_on([rank, rank + 2], which) for which in (SAMPLER, REWEIGHTER)]
    torch.save(rates, f"{folder}/{rank}.pth")


@pytest.mark.e2e
def test_two_processes_learn_the_rates_of_one(tmp_path):
    mp.spawn(_learn_in_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert all(map(torch.equal, first, second))
    for half, which in zip(first, (SAMPLER, REWEIGHTER), strict=True):
        whole = learning_on([0, 1, 2, 3], which)
        assert ((whole - 0.5).abs() > 0.01).any()
        torch.testing.assert_close(half, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.e2e
@pytest.mark.usefixtures("two_devices")
def test_rates_are_the_same_bits_in_every_process_that_trains(glyphs, tmp_path):
    decoupled(tmp_path)  # its first stage, before there are two processes to write it
    launch(_train_in_process, 2, dist_url="auto", args=(str(glyphs), str(tmp_path)))
    for name in ("sampler", "reweighter"):
        first, second = (torch.load(tmp_path / f"{name}{rank}.pth") for rank in range(2))
        assert torch.equal(first, second)
        assert (first != 0.5).any()


@exit_without_teardown
def _train_in_process(glyphs, folder):
    torch.set_num_threads(1)
    register_dataset("meta_train", f"{glyphs}/glyphs_train.json", glyphs)
    cfgs = {
        "sampler": decoupled(Path(folder), *SAMPLER),
        "reweighter": cfg_of(Path(folder), *REWEIGHTER),
    }
    for name, cfg in cfgs.items():
        trainer = trainer_of(cfg)
        run(trainer, 2)
        torch.save(meta_of(trainer).rates(), f"{folder}/{name}{comm.get_rank()}.pth")
