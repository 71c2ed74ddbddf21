"""Classes of a checkpoint are matched with the training set's by name, never by position."""

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_model import batch, stats_file, tiny_cfg

from balms_det.annotations.class_stats import ClassStats
from balms_det.engine import LongTailCheckpointer, build_long_tail_model
from balms_det.engine.class_order import layers_of_classes
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.errors import InputError

K = 10
HEADS = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"]
SPECIFIC = ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False]
SPECIFIC += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False]
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]


@pytest.fixture
def stats(tmp_path):
    return ClassStats.load(stats_file(tmp_path, K))


def with_names(stats, names):
    """Statistics whose classes have other names, in the same places."""
    return dataclasses.replace(stats, names=names)


def model_of(stats, *opts, seed=0):
    torch.manual_seed(seed)
    return build_long_tail_model(tiny_cfg(*opts), stats)


def saved(model, stats, folder):
    LongTailCheckpointer(model, str(folder), class_stats=stats).save("model")
    return str(folder / "model.pth")


@torch.no_grad()
def outputs(model):
    """Return the logits of the classes and the box deltas of each of a model's predictors."""
    predictors = [m for m in model.modules() if isinstance(m, LongTailPredictor)]
    features = torch.randn(6, predictors[0].cls_score.in_features, generator=torch.Generator())
    return [predictor.eval()(features) for predictor in predictors]


@pytest.mark.parametrize("loss", ["balanced_sigmoid", "softmax", "seesaw", "eqlv2", "loce", "bags"])
@pytest.mark.parametrize("heads", [[], [*HEADS, *AGNOSTIC]], ids=["one stage", "cascade"])
def test_a_permuted_checkpoint_predicts_the_same_classes(tmp_path, stats, loss, heads):
    opts = ["MODEL.LONG_TAIL.LOSS.NAME", loss, *SPECIFIC, *heads]
    trained = model_of(stats, *opts)
    with EventStorage():
        trained.train()(batch())  # a running state that is not the initial one
    path = saved(trained, stats, tmp_path)
    order = np.random.default_rng(1).permutation(K).tolist()
    ours = with_names(stats, [stats.names[index] for index in order])
    model = model_of(ours, *opts, seed=1)
    LongTailCheckpointer(model, class_stats=ours).load(path)
    assert len(outputs(model)) == (3 if heads else 1)
    for (logits, deltas), (ours_logits, ours_deltas) in zip(
        outputs(trained), outputs(model), strict=True
    ):
        columns = [*order, *range(K, logits.shape[1])]  # a background column stays
        torch.testing.assert_close(ours_logits, logits[:, columns])
        if not heads:
            deltas = deltas.view(6, K, 4)[:, order].flatten(1)
        torch.testing.assert_close(ours_deltas, deltas)
    # What is not of classes is untouched, and everything that is has moved.
    before, after = trained.state_dict(), model.state_dict()
    of_classes = set(layers_of_classes(list(before)))
    for name in set(before) - of_classes:
        assert torch.equal(before[name], after[name])
    moved = [n for n in of_classes if before[n].shape[:1] == (K,) and "criterion" in n]
    for name in [*moved, "roi_heads.mask_head.predictor.weight"]:
        assert torch.equal(before[name][order], after[name])
    if loss in ("eqlv2", "loce"):
        assert moved


def test_other_classes_are_refused_or_start_afresh(tmp_path, stats):
    path = saved(model_of(stats), stats, tmp_path)
    ours = with_names(stats, ["new", *stats.names[1:]])
    model = model_of(ours, seed=1)
    with pytest.raises(InputError, match=r"the class 'new' \(1 such classes\).*'class 0' in its"):
        LongTailCheckpointer(model, class_stats=ours).load(path)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    LongTailCheckpointer(model, class_stats=ours, reinit_mismatched=True).load(path)
    classifier = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(model.state_dict()[classifier], fresh[classifier])
    backbone = "backbone.bottom_up.stem.conv1.weight"
    assert not torch.equal(model.state_dict()[backbone], fresh[backbone])


def test_a_checkpoint_of_more_classes_says_how_many(tmp_path, stats):
    path = saved(model_of(stats), stats, tmp_path)
    model = build_long_tail_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 4), None)
    with pytest.raises(InputError, match=r"it has 10 classes; its run's config.yaml"):
        LongTailCheckpointer(model).load(path)
