"""What begins late in a run: the margin, and freezing all but the classifier."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from tiny_model import stats_file, tiny_cfg

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import register_dataset
from balms_det.engine import LongTailTrainer
from balms_det.losses.criterion import build_criterion
from balms_det.modeling.predictor import training_iteration
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

CLASSIFIER = {f"roi_heads.box_predictor.cls_score.{name}" for name in ("weight", "bias")}
MARGIN = "MODEL.LONG_TAIL.LOSS.MARGIN"
DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"


@pytest.mark.parametrize(
    "name, plain", [("balanced_sigmoid", "sigmoid"), ("balanced_softmax", "softmax")]
)
def test_before_its_iteration_a_balanced_loss_is_the_plain_one(name, plain, tmp_path):
    stats = ClassStats.load(stats_file(tmp_path))

    def criterion(loss, start_iter=0):
        cfg = tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", loss, f"{MARGIN}.START_ITER", start_iter)
        return build_criterion(cfg.MODEL.LONG_TAIL, 10, stats, training_iteration)

    torch.manual_seed(0)
    gt_classes = torch.randint(11, (20,))
    logits = torch.randn(20, criterion(name).activation.num_logits(10))
    before, after = criterion(plain)(logits, gt_classes), criterion(name)(logits, gt_classes)
    assert before != after
    late = criterion(name, start_iter=3)
    for iteration, expected in ((0, before), (2, before), (3, after), (4, after)):
        with EventStorage(iteration):
            assert late(logits, gt_classes) == expected


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    generate(folder, GlyphOptions(train_images=8, val_images=2, size=64, min_scale=0.2))
    register_dataset("late_train", str(folder / "glyphs_train.json"), str(folder))
    yield
    DatasetCatalog.remove("late_train")


class Snapshots(HookBase):
    """Remembers the model's state after each iteration."""

    def __init__(self):
        self.states = {}

    def after_step(self):
        state = self.trainer.model.state_dict()
        self.states[self.trainer.iter] = {name: value.clone() for name, value in state.items()}


def run(output, *opts, resume=False):
    cfg = tiny_cfg(
        "MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", "OUTPUT_DIR", output, "MODEL.WEIGHTS", "",
        "DATASETS.TRAIN", ("late_train",), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.WARMUP_ITERS", 0,
        f"{DECOUPLE}.ENABLED", True, f"{DECOUPLE}.START_ITER", 2, *opts,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    snapshots = Snapshots()
    trainer.loop.register_hooks([snapshots])
    trainer.train()
    return snapshots.states


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.usefixtures("glyphs")
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_from_its_iteration_on_nothing_but_the_classifier_moves(tmp_path, optimizer):
    """Not by weight decay or momentum either, nor batch normalisation's statistics."""
    opts = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", 0.001]
    states = run(tmp_path, *opts, "SOLVER.MAX_ITER", 4)
    assert len(changed(states[0], states[1])) > 50
    for iteration in (2, 3):
        assert changed(states[iteration - 1], states[iteration]) == CLASSIFIER
    # Resumed after the freezing began, it is frozen from the first iteration.
    resumed = run(tmp_path, *opts, "SOLVER.MAX_ITER", 6, resume=True)
    assert list(resumed) == [4, 5]
    assert changed(states[3], resumed[5]) == CLASSIFIER


@pytest.mark.parametrize(
    "opts, words",
    [
        ([f"{DECOUPLE}.START_ITER", -1], "START_ITER is -1"),
        ([f"{DECOUPLE}.REINIT", ["roi_heads.box_predictor.cls_score"]], "DECOUPLE.REINIT"),
        (["MODEL.LONG_TAIL.CLASSIFIER", "lws",
          f"{DECOUPLE}.TRAIN_MODULES", ["roi_heads.box_predictor.cls_score.scale"]], "'lws'"),
    ],
)  # fmt: skip
def test_combinations_without_meaning_are_refused(opts, words):
    with pytest.raises(InputError, match=words):
        tiny_cfg(f"{DECOUPLE}.ENABLED", True, f"{DECOUPLE}.START_ITER", 2, *opts)


def test_one_run_for_both_stages_needs_no_first_stage():
    tiny_cfg(f"{DECOUPLE}.ENABLED", True, f"{DECOUPLE}.START_ITER", 2, "MODEL.WEIGHTS", "")
