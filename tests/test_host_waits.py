"""The host waits for the device no more often than these numbers say."""

import host_waits
import pytest
import second_device
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from balms_det.losses.registry import LOSSES
from balms_det.modeling import LongTailMaskHead, LongTailPredictor

K = 40

# In a training step, by code of this package. The box loss waits once, in the place of
# Detectron2's own box loss. The feature bank waits for the classes of the batch; the Meta
# Sampler, which draws on the host, for the gradient of its rates.
WAITS_OF_A_STEP = {
    "balanced_sigmoid": 1,
    "balanced_sigmoid, mixed precision": 1,
    "balanced_sigmoid, cascade": 3,
    "second stage": 1,
    "second stage, cached features": 0,
    "Meta Sampler": 3,
    "Meta Sampler, second stage": 3,
    "Meta Sampler, cached features": 2,
    "Meta Reweighter": 2,
    "Meta Reweighter, second stage": 2,
}
PEERS = {
    "balanced_sigmoid": "Detectron2's heads",
    "balanced_sigmoid, cascade": "Detectron2's cascade",
}
# One for every chunk of candidates that is looked at. Of few candidates, of which all are
# suppressed at once, torchvision's suppression waits twice more.
WAITS_OF_A_SELECTION = {
    "25 objects, 40 proposals of 3 classes each": 2,
    "100 objects, 40 proposals of 12 classes each": 1,
    "few candidates": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host_waits")
    with host_waits.training_set(folder):
        yield folder


def test_the_page_has_the_stored_numbers_and_these_are_they():
    page = (host_waits.RUNS.parent.parent / "performance/WAITS.md").read_text(encoding="utf-8")
    now = host_waits.stored("now")
    for table in host_waits.tables(host_waits.stored("before"), now).values():
        assert table in page
    steps = {r["name"]: r["balms_det"] for r in now if r["work"] == host_waits.STEP}
    assert steps == {**dict.fromkeys(PEERS.values(), 0), **WAITS_OF_A_STEP}
    selections = {r["name"]: r["all"] for r in now if r["work"] == host_waits.SELECTION}
    assert selections == WAITS_OF_A_SELECTION
    assert not any(r["all"] for r in now if r["work"] == "loss")


def test_every_training_has_its_number():
    assert WAITS_OF_A_STEP.keys() | set(PEERS.values()) == host_waits.TRAININGS.keys()
    assert WAITS_OF_A_SELECTION.keys() == host_waits.SELECTIONS.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("name", WAITS_OF_A_STEP)
def test_a_training_step_waits_as_often_as_this(emulated, name, folder, tmp_path):
    heard = step_of(name, tmp_path)
    assert heard.total(owner="balms_det") == WAITS_OF_A_STEP[name], heard.table("balms_det")
    assert heard.total("hazard") == 0, heard.table()
    if name in PEERS:
        peer = step_of(PEERS[name], tmp_path / "peer")
        assert heard.total() <= peer.total(), heard.table() + "\n\n" + peer.table()


def step_of(name, folder):
    return host_waits.step_waits(host_waits.trainer_of(folder, *host_waits.TRAININGS[name]))


@pytest.mark.gpu
def test_one_more_wait_in_a_step_is_noticed(emulated, folder, tmp_path, monkeypatch):
    loss = LongTailPredictor.classification_loss
    monkeypatch.setattr(
        LongTailPredictor,
        "classification_loss",
        lambda self, logits, *args: loss(self, logits * (1 + 0 * logits.sum().item()), *args),
    )
    heard = step_of("balanced_sigmoid", tmp_path)
    assert heard.total() - heard.total(owner="balms_det") > 0
    assert sum(n for (*_, place), n in heard.counts.items() if "test_host_waits" in place) == 0
    monkeypatch.undo()
    assert step_of("balanced_sigmoid", tmp_path / "again").total() == heard.total() - 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", ["none", "effective_number"])
def test_no_loss_waits(emulated, tmp_path, name, weights):
    options = {"CLASS_WEIGHTS": {"NAME": weights}}
    heard = host_waits.loss_waits(name, emulated, tmp_path, **options)
    assert heard.total() == 0, heard.table()


@pytest.mark.gpu
@pytest.mark.parametrize("name", host_waits.SELECTIONS)
def test_a_selection_waits_as_often_as_this(emulated, name):
    waits = host_waits.selection_waits(name, emulated)
    assert waits["all"] == WAITS_OF_A_SELECTION[name] < waits["peer"]


@pytest.mark.gpu
def test_masks_wait_for_nothing(emulated):
    shape = ShapeSpec(channels=8, height=14, width=14)
    head = LongTailMaskHead(shape, num_classes=K, conv_dims=[8, 8]).to(emulated).eval()
    found = Instances((64, 64))
    found.pred_classes = torch.randint(K, (9,)).to(emulated)
    found.pred_boxes = Boxes(torch.rand(9, 4).to(emulated))
    features = torch.randn(9, 8, 14, 14).to(emulated)
    with torch.inference_mode(), second_device.listening() as heard:
        head(features, [found])
    assert heard.total() == 0, heard.table()
