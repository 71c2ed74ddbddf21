"""What mmdetection has too: losses of the same values, gradients and running state, and layers.

mmdetection is no dependency. It is fetched for these tests, and only single files of it are loaded,
with stubs for their imports, because mmcv is compiled.
"""

import importlib
import subprocess
import sys
import types
from functools import partial

import pytest
import torch

from balms_det import losses
from balms_det.classifier import CosineConv2d, CosineLinear

pytestmark = pytest.mark.slow

REQUIREMENT = "mmdet==3.3.0"
K, R = 40, 64


@pytest.fixture(scope="module")
def mmdet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmdet")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*pip, "--target", str(folder), REQUIREMENT], capture_output=True, text=True
    )
    if done.returncode != 0:
        # Also what pip says of a package that does exist, when it cannot look.
        assert "No matching distribution" in done.stderr or "onnection" in done.stderr, done.stderr
        pytest.skip("the package index is unreachable")
    return folder


@pytest.fixture
def mmdet_module(mmdet_folder, monkeypatch):
    """name -> module mmdet.models.name, with stubs for all that it imports from outside."""

    def stub(name, path=None, **attributes):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        module.__path__ = [] if path is None else [str(path)]
        monkeypatch.setitem(sys.modules, name, module)

    registry = types.SimpleNamespace(
        register_module=lambda *args, **kwargs: lambda registered: registered
    )
    stub("mmcv")
    stub("mmcv.ops", sigmoid_focal_loss=None)
    stub("mmengine")
    stub("mmengine.logging", print_log=lambda *args, **kwargs: None)
    stub("mmengine.utils", digit_version=lambda version: version)
    stub("mmdet")
    stub("mmdet.registry", MODELS=registry)
    stub("mmdet.models")
    for part in ("losses", "layers"):  # without the __init__, which imports everything
        stub(f"mmdet.models.{part}", mmdet_folder / "mmdet" / "models" / part)

    def load(name):
        full_name = f"mmdet.models.{name}"
        monkeypatch.delitem(sys.modules, full_name, raising=False)
        return importlib.import_module(full_name)

    yield load
    for name in list(sys.modules):
        if name.startswith("mmdet.models."):
            del sys.modules[name]


def batches(num_logits, num_batches=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_batches):
        logits = torch.randn(R, num_logits, generator=generator, dtype=torch.float64)
        gt = torch.randint(K + 1, (R,), generator=generator)
        yield logits, torch.where(gt > K // 2, K, gt)  # half of the rows are background


def values_and_gradients(loss, logits, gt):
    logits = logits.clone().requires_grad_()
    value = loss(logits, gt)
    value.backward()
    return value.detach(), logits.grad


def assert_equal_losses(ours, theirs, logits, gt):
    torch.testing.assert_close(
        values_and_gradients(ours, logits, gt),
        values_and_gradients(theirs, logits, gt),
        rtol=1e-10,
        atol=1e-14,
    )


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.5, 0.9)])
def test_focal(mmdet_module, gamma, alpha):
    peer = mmdet_module("losses.focal_loss").py_sigmoid_focal_loss

    def theirs(logits, gt):
        target = torch.nn.functional.one_hot(gt, K + 1)[:, :K]
        return peer(logits, target, gamma=gamma, alpha=alpha, reduction="sum") / R

    for logits, gt in batches(K):
        assert_equal_losses(
            partial(losses.focal_loss, gamma=gamma, alpha=alpha), theirs, logits, gt
        )


def test_eqlv2(mmdet_module):
    peer = mmdet_module("losses.eqlv2_loss").EQLV2Loss(num_classes=K).double()
    state = {name: torch.zeros(K, dtype=torch.float64) for name in ("pos_grads", "neg_grads")}
    for logits, gt in batches(K + 1):
        assert_equal_losses(partial(losses.eqlv2_loss, **state), peer, logits, gt)
        state = losses.accumulated(state, losses.eqlv2_gradients(logits, gt, **state))
        torch.testing.assert_close(state["pos_grads"], peer.pos_grad, rtol=1e-10, atol=0)
        torch.testing.assert_close(state["neg_grads"], peer.neg_grad, rtol=1e-10, atol=0)


def test_seesaw(mmdet_module):
    peer = mmdet_module("losses.seesaw_loss").SeesawLoss(num_classes=K, reduction="sum").double()
    state = {"class_samples": torch.zeros(K, dtype=torch.int64)}
    for logits, gt in batches(K + 2):
        state = losses.accumulated(state, losses.seesaw_samples(logits, gt, **state))
        assert_equal_losses(
            partial(losses.seesaw_loss, **state, reduction="sum"),
            lambda x, y: sum(peer(x, y).values()),  # of the classes and of the objectness
            logits,
            gt,
        )
        assert peer.cum_samples[:K].tolist() == state["class_samples"].tolist()


@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_normalised_layers(mmdet_module, name):
    peers = mmdet_module("layers.normed_predictor")
    if name == "Linear":
        theirs, ours, shape = peers.NormedLinear(8, K, tempearture=30), CosineLinear, (R, 8)
    else:
        theirs, ours, shape = (
            peers.NormedConv2d(8, K, 1, tempearture=30),
            CosineConv2d,
            (R, 8, 3, 3),
        )
    ours = ours(8, K, temperature=30).double()
    ours.load_state_dict(theirs.double().state_dict())
    features = torch.randn(shape, dtype=torch.float64)
    # They add 1e-6 to a norm, where we take the larger of both.
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-3, atol=1e-3)
