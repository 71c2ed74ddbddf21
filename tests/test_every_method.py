"""Every method trains on generated data of 1,203 classes and is evaluated; so does every config."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from second_device import name_of_device
from tiny_model import tiny_cfg

from balms_det.calibration import CALIBRATIONS, LogitStats
from balms_det.classifier import CLASSIFIERS
from balms_det.config import config_file
from balms_det.data import DETECTRON2_SAMPLERS, SAMPLERS, register_dataset
from balms_det.engine import LongTailTrainer, build_long_tail_model, load_config, validate_config
from balms_det.losses.registry import LOSSES
from balms_det.synthetic import GlyphOptions, generate

NUM_CLASSES = 1203
NAMES = {"train": "every_method_train", "val": "every_method_val"}
METHODS = sorted(p.stem for p in Path(config_file("methods/balsig.yaml")).parent.glob("*.yaml"))
COMPOSITIONS = [f"{base}+{method}" for base in ("lvis_r50", "lvis_r101") for method in METHODS]
LOSS = "MODEL.LONG_TAIL.LOSS"


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """A registered set of small pictures, in which each of the 1,203 classes occurs."""
    folder = tmp_path_factory.mktemp("glyphs")
    options = GlyphOptions(
        classes=NUM_CLASSES,
        train_images=402,
        val_images=3,
        size=64,
        min_scale=0.2,
        tail="lvis_v1",
        val_tail="long_tailed",
    )
    generate(folder, options)
    for split, name in NAMES.items():
        register_dataset(name, str(folder / f"glyphs_{split}.json"), str(folder))
    yield folder
    for name in NAMES.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


DATA = [
    "DATASETS.TRAIN", f"('{NAMES['train']}',)", "DATASETS.TEST", f"('{NAMES['val']}',)",
    "DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES,
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "INPUT.MASK_FORMAT", "bitmask",
    "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", "()", "MODEL.DEVICE", name_of_device(),
]  # fmt: skip


def train_and_evaluate(cfg, output):
    """What tools/train_net.py does; returns the trainer, having checked losses and results."""
    cfg.OUTPUT_DIR = str(output)
    cfg.freeze()
    torch.manual_seed(0)
    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    history = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(record["total_loss"]) for record in history if "total_loss" in record)
    results = json.loads((output / "inference" / "lvis_results.json").read_text())
    assert set(results) == {"bbox", "segm"}
    return trainer


def small(*opts):
    return tiny_cfg(*DATA, "SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
                    False, "TEST.DETECTIONS_PER_IMAGE", 10, *opts)  # fmt: skip


@pytest.fixture(scope="module")
def first_stage(glyphs, tmp_path_factory):
    """Checkpoint of a softmax detector."""
    output = tmp_path_factory.mktemp("first_stage")
    train_and_evaluate(small(f"{LOSS}.NAME", "softmax"), output)
    return str(output / "model_final.pth")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(glyphs, tmp_path, name):
    trainer = train_and_evaluate(small(f"{LOSS}.NAME", name), tmp_path)
    untrained = build_long_tail_model(trainer.cfg, None).roi_heads.box_predictor.cls_score
    assert not torch.equal(trainer.model.roi_heads.box_predictor.cls_score.bias, untrained.bias)


@pytest.mark.parametrize(
    "opts",
    [
        *(
            # The meta step is that of SGD.
            [f"{LOSS}.NAME", "sigmoid", "DATALOADER.SAMPLER_TRAIN", name, "SOLVER.OPTIMIZER", "SGD"]
            for name in SAMPLERS
        ),
        [f"{LOSS}.CLASS_WEIGHTS.NAME", "learned", "SOLVER.OPTIMIZER", "SGD"],
        [f"{LOSS}.NAME", "sigmoid", f"{LOSS}.FEDERATED.ENABLED", True],
        [f"{LOSS}.NAME", "softmax", f"{LOSS}.CLASS_WEIGHTS.NAME", "inverse"],
        [f"{LOSS}.NAME", "focal", f"{LOSS}.CLASS_WEIGHTS.NAME", "effective_number"],
        [f"{LOSS}.NAME", "seesaw", f"{LOSS}.SEESAW.OBJECTNESS", True],
        ["MODEL.LONG_TAIL.CLASSIFIER", "cosine", "MODEL.LONG_TAIL.MASK_CLASSIFIER", "cosine"],
        ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"],
        ["INPUT.COPY_PASTE.PROB", 1.0, "INPUT.LARGE_SCALE_JITTER.SIZE", 64],
        *(
            ["MODEL.LONG_TAIL.CALIBRATION.NAME", name]
            for name in CALIBRATIONS
            if name not in ("none", "logn")  # tests/test_logit_stats.py has logn
        ),
    ],
    ids=lambda opts: "-".join(str(opt).rsplit(".", 1)[-1] for opt in opts),
)
def test_every_option(glyphs, tmp_path, opts):
    train_and_evaluate(small(*opts), tmp_path)


@pytest.mark.parametrize("loss", ["softmax", "balanced_softmax"])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_second_stage(glyphs, first_stage, tmp_path, loss, classifier):
    trained = "roi_heads.box_predictor.cls_score" + (".scale" if classifier == "lws" else "")
    second = [
        "MODEL.WEIGHTS", first_stage, f"{LOSS}.NAME", loss,
        "MODEL.LONG_TAIL.CLASSIFIER", classifier, "MODEL.LONG_TAIL.DECOUPLE.ENABLED", True,
        "MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES", [trained],
    ]  # fmt: skip
    trainer = train_and_evaluate(small(*second), tmp_path)
    before = torch.load(first_stage, weights_only=True)["model"]
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(trained) for name in changed)


def test_every_sampler_of_detectron2_is_let_through():
    for name in DETECTRON2_SAMPLERS:
        cfg = small("DATALOADER.SAMPLER_TRAIN", name)
        validate_config(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_every_configuration(glyphs, tmp_path, name):
    """The model, loss and sampler as written; pictures, batch and schedule for a test."""

    def load(name, *opts):
        # Trained batch norm, because frozen statistics of no training make the loss explode.
        scratch = ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"]
        batch = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"]
        if "copy_paste" in name:
            opts = ["INPUT.LARGE_SCALE_JITTER.SIZE", "64", *opts]
        opts = [*map(str, DATA), *scratch, *batch, *opts]
        return load_config(argparse.Namespace(config_file=name, opts=opts, dataset=[]))

    cfg = load(name)
    if cfg.MODEL.LONG_TAIL.CALIBRATION.NAME == "logn":
        ones = torch.ones(NUM_CLASSES, dtype=torch.float64)
        cfg.MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS = str(tmp_path / "logit_stats.json")
        LogitStats(ones, ones, 1).save(cfg.MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS)
    if cfg.MODEL.LONG_TAIL.DECOUPLE.ENABLED:
        first = Path(cfg.MODEL.WEIGHTS).parent.name  # as in output/lvis_r50_rfs/model_final.pth
        first_cfg = load("+".join(first.rsplit("_", 1)), "MODEL.WEIGHTS", "")
        train_and_evaluate(first_cfg, tmp_path / "first")
        cfg.MODEL.WEIGHTS = str(tmp_path / "first" / "model_final.pth")
    else:
        cfg.MODEL.WEIGHTS = ""
    train_and_evaluate(cfg, tmp_path / "run")
