"""Class statistics: one resolver for all sources, and models that receive them."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from tiny_model import stats_file, tiny_cfg

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import register_dataset
from balms_det.engine import (
    LongTailTrainer,
    build_long_tail_model,
    inference_class_stats,
    resolve_class_stats,
    training_class_stats,
)
from balms_det.losses.criterion import build_criterion
from balms_det.losses.registry import LOSSES
from balms_det.modeling import provide_class_stats
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

LOSS = "MODEL.LONG_TAIL.LOSS.NAME"


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    options = GlyphOptions(classes=10, train_images=12, val_images=2, size=64, min_scale=0.2)
    generate(folder, options)
    register_dataset("stats_train", str(folder / "glyphs_train.json"), str(folder))
    yield folder
    DatasetCatalog.remove("stats_train")
    MetadataCatalog.remove("stats_train")


def checkpoint(path, stats=None):
    content = {"model": {}} if stats is None else {"model": {}, "class_stats": stats.to_dict()}
    torch.save(content, path)
    return path


def test_every_source_gives_the_same_statistics(glyphs, tmp_path):
    counted = ClassStats.from_json(glyphs / "glyphs_train.json")
    counted.save(tmp_path / "stats.json")
    sources = [
        "stats_train",
        ("stats_train",),
        glyphs / "glyphs_train.json",
        tmp_path / "stats.json",
        checkpoint(tmp_path / "model.pth", counted),
    ]
    for source in sources:
        assert resolve_class_stats(source).to_dict() == counted.to_dict(), source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("unknown_train", "'unknown_train' is not registered"),
        ("missing.json", "missing.json"),
        ("missing.pth", "missing.pth: there is no such checkpoint"),
        ((), "DATASETS.TRAIN is empty"),
        ("", "needs class statistics: set MODEL.LONG_TAIL.STATS_FILE"),
    ],
)
def test_a_source_without_statistics_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        resolve_class_stats(source)


def test_a_checkpoint_without_statistics_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="model.pth.*carries none.*STATS_FILE"):
        resolve_class_stats(checkpoint(tmp_path / "model.pth"))


def test_training_counts_its_data_and_leaves_the_configuration_alone(glyphs, tmp_path):
    cfg = tiny_cfg("DATASETS.TRAIN", ("stats_train",), "OUTPUT_DIR", tmp_path)
    before = cfg.dump()
    stats = training_class_stats(cfg)
    assert stats.to_dict() == ClassStats.from_json(glyphs / "glyphs_train.json").to_dict()
    assert json.loads((tmp_path / "class_stats.json").read_text()) == stats.to_dict()
    assert cfg.dump() == before


def test_the_users_own_file_goes_before_the_data_and_the_checkpoint(glyphs, tmp_path):
    own = stats_file(tmp_path)
    cfg = tiny_cfg(
        "DATASETS.TRAIN", ("stats_train",), "MODEL.LONG_TAIL.STATS_FILE", own,
        "OUTPUT_DIR", tmp_path / "run",
    )  # fmt: skip
    expected = ClassStats.load(own).to_dict()
    assert training_class_stats(cfg).to_dict() == expected
    counted = ClassStats.from_json(glyphs / "glyphs_train.json")
    weights = checkpoint(tmp_path / "model.pth", counted)
    assert inference_class_stats(cfg, str(weights)).to_dict() == expected
    own.unlink()
    assert inference_class_stats(cfg, str(weights)).to_dict() == counted.to_dict()
    with pytest.raises(InputError, match=own.name):
        inference_class_stats(cfg, "")


def test_a_model_that_calibrates_is_not_built_without_statistics():
    cfg = tiny_cfg("MODEL.LONG_TAIL.CALIBRATION.NAME", "norcal")
    with pytest.raises(InputError, match="needs class statistics"):
        build_long_tail_model(cfg, None)


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_that_receives_statistics_is_the_model_that_reads_them(tmp_path, name):
    """Parameters, random numbers and the criterion are equal to the last bit."""
    path = stats_file(tmp_path)
    stats = ClassStats.load(path)
    torch.manual_seed(3)
    reads = build_model(tiny_cfg(LOSS, name, "MODEL.LONG_TAIL.STATS_FILE", path))
    after_reading = torch.rand(3)
    torch.manual_seed(3)
    cfg = tiny_cfg(LOSS, name)
    receives = build_long_tail_model(cfg, stats)
    assert torch.equal(torch.rand(3), after_reading)
    first, second = reads.state_dict(), receives.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    buffers = [dict(m.roi_heads.box_predictor.criterion.named_buffers()) for m in (reads, receives)]
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(buffers[0][key], buffers[1][key]) for key in buffers[0])


def test_every_stage_of_a_cascade_receives_statistics_and_calibration(tmp_path):
    stats = ClassStats.load(stats_file(tmp_path))
    calibrated = ["MODEL.LONG_TAIL.CALIBRATION.NAME", "norcal"]
    heads = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"]
    cfg = tiny_cfg(*heads, *calibrated)
    model = build_long_tail_model(cfg, stats)
    expected = build_criterion(cfg.MODEL.LONG_TAIL, 10, stats).loss.margins
    assert len(model.roi_heads.box_predictor) == 3
    for predictor in model.roi_heads.box_predictor:
        assert torch.equal(predictor.criterion.loss.margins.cpu(), expected)
        assert predictor.calibration is not None


def test_statistics_of_other_classes_are_refused(tmp_path):
    cfg = tiny_cfg()
    model = build_long_tail_model(cfg, None)
    other = ClassStats.load(stats_file(tmp_path, num_classes=7))
    with pytest.raises(InputError, match="of 7 classes.*NUM_CLASSES is 10"):
        provide_class_stats(model, cfg.MODEL.LONG_TAIL, other)


def test_checkpoints_have_the_format_of_detectron2s_trainer(glyphs, tmp_path):
    cfg = tiny_cfg(
        "DATASETS.TRAIN", ("stats_train",), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "INPUT.MIN_SIZE_TRAIN", (64,),
        "OUTPUT_DIR", tmp_path,
    )  # fmt: skip
    trainer = LongTailTrainer(cfg)
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["trainer"].keys() == {"iteration", "hooks", "_trainer"}
    assert saved["trainer"]["iteration"] == 1
    assert saved["trainer"]["hooks"].keys() == {"LRScheduler"}
    assert saved["trainer"]["_trainer"].keys() == {"iteration", "optimizer"}
    assert ClassStats.from_dict(saved["class_stats"]).to_dict() == trainer.class_stats.to_dict()
    resumed = LongTailTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    states = [t.loop.optimizer.state_dict()["state"] for t in (trainer, resumed)]
    assert states[0].keys() == states[1].keys() != set()
