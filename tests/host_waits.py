"""How often the host waits for the device in a training step and in the detection of an image.

Counted on the emulated device (tests/second_device), and written into the page:

    python tests/host_waits.py --json docs/runs/waits/now.json --into docs/performance/WAITS.md

A wait belongs to whoever's code is the innermost: this package, Detectron2, or PyTorch's optimizers
and gradient scaler.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import second_device
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.utils.events import EventStorage
from tiny_model import stats_file, tiny_cfg

from balms_det.data import register_dataset
from balms_det.engine import LongTailCheckpointer, LongTailTrainer
from balms_det.engine.trainer import build_long_tail_model
from balms_det.losses.registry import LOSSES
from balms_det.modeling import criterion_from_options
from balms_det.modeling.inference import PredictedBoxes, select_detections
from balms_det.synthetic import GlyphOptions, generate
from lab import markdown

RUNS = Path(__file__).resolve().parent.parent / "docs/runs/waits"
STEP, SELECTION = "training step", "selection"
LOSS_CLASSES = 40
LONG_TAIL = "MODEL.LONG_TAIL"
LOSS = f"{LONG_TAIL}.LOSS.NAME"
CLASSIFIER = "roi_heads.box_predictor.cls_score"
CASCADE = ("MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads")
SECOND_STAGE = (f"{LONG_TAIL}.DECOUPLE.ENABLED", True)
CACHED = (*SECOND_STAGE, f"{LONG_TAIL}.DECOUPLE.FEATURE_CACHE")  # and a folder
AGNOSTIC = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
REINIT = f"{LONG_TAIL}.DECOUPLE.REINIT"
SAMPLER = ("DATALOADER.SAMPLER_TRAIN", "MetaTrainingSampler")
REWEIGHTER = (f"{LONG_TAIL}.LOSS.CLASS_WEIGHTS.NAME", "learned")
DATASET = "host_waits_train"

# Trainings by their name in the table.
TRAININGS: dict[str, tuple[object, ...]] = {
    "Detectron2's heads": ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    "Detectron2's cascade": ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
    "balanced_sigmoid": (LOSS, "balanced_sigmoid"),
    "balanced_sigmoid, mixed precision": (LOSS, "balanced_sigmoid", "SOLVER.AMP.ENABLED", True),
    "balanced_sigmoid, cascade": (LOSS, "balanced_sigmoid", *CASCADE),
    "second stage": (LOSS, "balanced_sigmoid", *SECOND_STAGE),
    "second stage, cached features": (LOSS, "balanced_sigmoid", *CACHED),
    "Meta Sampler": (LOSS, "balanced_softmax", *SAMPLER),
    "Meta Sampler, second stage": (LOSS, "balanced_softmax", *SAMPLER, *SECOND_STAGE),
    "Meta Sampler, cached features": (LOSS, "balanced_softmax", *SAMPLER, *CACHED),
    "Meta Reweighter": (LOSS, "balanced_softmax", *REWEIGHTER),
    "Meta Reweighter, second stage": (LOSS, "balanced_softmax", *REWEIGHTER, *SECOND_STAGE),
}


@contextlib.contextmanager
def training_set(folder: Path) -> Iterator[None]:
    """Register 24 images of glyphs."""
    generate(folder, GlyphOptions(train_images=24, val_images=2, size=64, min_scale=0.2))
    register_dataset(DATASET, str(folder / "glyphs_train.json"), str(folder))
    try:
        yield
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)


def trainer_of(folder: Path, *opts: object) -> LongTailTrainer:
    """Return a training on :func:`training_set`, with checkpoint and cache below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if opts and opts[-1] == CACHED[-1]:
        opts = (*opts, folder / "features")
    common = (
        "DATASETS.TRAIN", (DATASET,), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.OPTIMIZER", "SGD",
        "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.001, "OUTPUT_DIR", folder, "SEED", 1,
    )  # fmt: skip
    is_cascade = any("Cascade" in str(opt) for opt in opts)
    common = (*common, AGNOSTIC, is_cascade)
    torch.manual_seed(0)
    if SECOND_STAGE[0] in opts:
        first = build_long_tail_model(tiny_cfg(LOSS, "softmax", AGNOSTIC, False), None)
        LongTailCheckpointer(first, str(folder)).save("first")
        opts = (*opts, "MODEL.WEIGHTS", folder / "first.pth", REINIT, [CLASSIFIER])
    trainer = LongTailTrainer(tiny_cfg(*common, *opts))
    trainer.resume_or_load(resume=False)
    return trainer


def step_waits(trainer: LongTailTrainer) -> second_device.Heard:
    """Return what the third training step asks of the device: the first two fill caches."""
    loop = trainer.loop
    with EventStorage(0) as loop.storage:
        for loop.iter in range(3):
            loop.storage.iter = loop.iter
            with second_device.listening() as heard:
                loop.run_step()
                _meta_step(loop)
    return heard


def _meta_step(loop: object) -> None:
    """The hooks' work after a step, but for writers and checkpoints, which have periods."""
    for hook in loop._hooks:
        if type(hook).__name__ == "MetaLearning":
            hook.after_step()


IMAGE_SHAPE = (800, 1333)
CLASSES = 1203


def scores_and_boxes(
    objects: int, per_object: int, classes_of_each: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (R, 4) boxes and (R, K + 1) scores of proposals that agree on what an object is.

    Args:
        objects: apart from each other.
        per_object: proposals around each.
        classes_of_each: that the proposals of an object have high scores for.
        device: of the result.
    """
    generator = torch.Generator().manual_seed(0)
    number = objects * per_object
    which = torch.arange(objects).repeat_interleave(per_object)
    corner = torch.stack([which % 12 * 110.0, which // 12 * 110.0], dim=1)
    corner = corner + 20 * torch.rand(number, 2, generator=generator)
    size = 60 + 20 * torch.rand(number, 2, generator=generator)
    scores = 1e-5 * torch.rand(number, CLASSES + 1, generator=generator)
    classes = (which * classes_of_each)[:, None] + torch.arange(classes_of_each)
    high = 0.1 + 0.8 * torch.rand(classes.shape, generator=generator)
    scores.scatter_(1, classes % CLASSES, high)
    return torch.cat([corner, corner + size], dim=1).to(device), scores.to(device)


# Arguments of scores_and_boxes, and the least score of a candidate.
SELECTIONS = {
    "few candidates": ((50, 20, 1), 0.05),
    "25 objects, 40 proposals of 3 classes each": ((25, 40, 3), 0.0),
    "100 objects, 40 proposals of 12 classes each": ((100, 40, 12), 0.05),
}


def selection_waits(name: str, device: torch.device) -> dict[str, int]:
    """Return the waits in the selection of one image's detections, ours and Detectron2's."""
    sizes, threshold = SELECTIONS[name]
    boxes, scores = scores_and_boxes(*sizes, device)
    options = (IMAGE_SHAPE, threshold, 0.5, 300)
    with second_device.listening() as ours:
        select_detections(PredictedBoxes(boxes), scores, *options)
    with second_device.listening() as theirs:
        fast_rcnn_inference_single_image(boxes, scores, *options)
    return {"all": ours.total(), "peer": theirs.total()}


def loss_waits(
    name: str, device: torch.device, folder: Path, **options: object
) -> second_device.Heard:
    """Return what a loss, its gradient and its probabilities ask of the device."""
    stats = str(stats_file(folder, LOSS_CLASSES))
    options = {"LOSS": {"NAME": name, **options}}
    criterion = criterion_from_options(
        num_classes=LOSS_CLASSES, stats_file=stats, options=options
    ).to(device)
    logits = torch.randn(30, criterion.activation.num_logits(LOSS_CLASSES)).to(device)
    gt_classes = torch.randint(LOSS_CLASSES + 1, (30,)).to(device)
    logits.requires_grad_()
    with second_device.listening() as heard:
        criterion(logits, gt_classes).backward()
        criterion.activation.probs(logits)
    assert logits.grad.isfinite().all()
    return heard


def records(device: torch.device) -> Iterator[dict[str, Any]]:
    """Return the waits of every work."""
    with tempfile.TemporaryDirectory() as name, training_set(Path(name)):
        folder = Path(name)
        for number, (training, opts) in enumerate(TRAININGS.items()):
            heard = step_waits(trainer_of(folder / str(number), *opts))
            ours = heard.total(owner="balms_det")
            yield {"work": STEP, "name": training, "balms_det": ours, "all": heard.total()}
        for loss in LOSSES:
            waits = loss_waits(loss, device, folder).total()
            yield {"work": "loss", "name": loss, "balms_det": waits, "all": waits}
    for selection in SELECTIONS:
        yield {"work": SELECTION, "name": selection, **selection_waits(selection, device)}


def tables(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, str]:
    """Return the tables of docs/performance/WAITS.md by the names of their blocks."""
    pairs = [(old, new) for old, new in zip(before, after, strict=True)]
    assert all(old["name"] == new["name"] for old, new in pairs)
    steps = [
        [new["name"], *(str(run[key]) for key in ("balms_det", "all") for run in (old, new))]
        for old, new in pairs
        if new["work"] == STEP or (old["work"] == "loss" and old["all"])
    ]
    selections = [
        [new["name"], str(old["all"]), str(new["all"]), str(new["peer"])]
        for old, new in pairs
        if new["work"] == SELECTION
    ]
    headers = ["training step", "here, before", "now", "in all, before", "now"]
    return {
        "steps": markdown.table(headers, steps),
        "selections": markdown.table(
            ["detections of an image", "before", "now", "Detectron2"], selections
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="count, and store the numbers")
    parser.add_argument("--into", type=Path, metavar="PAGE.md", help="write the stored tables")
    args = parser.parse_args()
    if args.json:
        second_device.install()
        os.environ[second_device.DEVICE_VARIABLE] = "cuda"
        torch.set_num_threads(1)
        found = list(records(torch.device("cuda")))
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.into:
        markdown.update_blocks(args.into, tables(stored("before"), stored("now")))


def stored(name: str) -> list[dict[str, Any]]:
    """Return the records of a run in docs/runs/waits."""
    found: list[dict[str, Any]] = json.loads((RUNS / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    main()
