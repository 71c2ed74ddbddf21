"""Training in mixed precision does what training in single precision does, up to rounding."""

import copy

import host_waits
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny_model import stats_file, tiny_cfg
from torch import nn

from balms_det.engine import LongTailCheckpointer
from balms_det.engine.trainer import build_optimizer
from balms_det.losses.registry import LOSSES
from balms_det.modeling import criterion_from_options


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("clip", ["norm", "value", None])
def test_the_scale_of_the_loss_does_not_change_the_step(device, optimizer, clip):
    """Gradients are clipped as they are, not as the gradient scaler has scaled them."""
    cfg = tiny_cfg(
        "SOLVER.OPTIMIZER", optimizer, "SOLVER.AMP.ENABLED", True, "SOLVER.BASE_LR", 0.1,
        "SOLVER.CLIP_GRADIENTS.ENABLED", clip is not None,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip or "value",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, "SOLVER.WEIGHT_DECAY", 0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).to(device)
    inputs = torch.randn(8, 4, device=device)
    parameters = []
    for scale in (1.0, 2.0**16):
        model = copy.deepcopy(layer)
        steps = build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler(device.type, init_scale=scale)
        for factor in (0.01, 10.0):  # below what is clipped, and above
            steps.zero_grad()
            scaler.scale(model(inputs).square().mean() * factor).backward()
            scaler.step(steps)
            scaler.update()
        parameters.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(parameters[0], torch.cat([p.flatten() for p in layer.parameters()]))
    torch.testing.assert_close(*parameters, rtol=0, atol=1e-6)


K = 40
SPECIFIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False)


def loss_of(name, logits, gt_classes, folder, *, steps=2):
    """Return the losses and gradients of some steps of a fresh criterion, and its state."""
    stats = str(stats_file(folder, K))
    options = {"LOSS": {"NAME": name}}
    criterion = criterion_from_options(num_classes=K, stats_file=stats, options=options)
    criterion.to(logits.device).train()
    if logits.dtype == torch.float64:
        criterion.double()
    losses, gradients = [], []
    for seed in range(steps):
        torch.manual_seed(seed)
        leaf = logits.clone().requires_grad_()
        loss = criterion(leaf, gt_classes)
        (loss * SCALE).backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    probs = criterion.activation.probs(logits)
    return losses, gradients, probs, criterion.state_dict()


SCALE = 2.0**10  # of the loss, so that half precision holds the gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 3.0, 100.0, 6e4])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_half_precision_are_those_of_double(device, tmp_path, name, scale, dtype):
    """Over the range of values that half precision holds, in the autocast of a training."""
    generator = torch.Generator().manual_seed(0)
    activation = criterion_from_options(
        num_classes=K, options={"LOSS": {"NAME": name}}, stats_file=str(stats_file(tmp_path, K))
    ).activation
    logits = scale * torch.randn(30, activation.num_logits(K), generator=generator)
    logits = logits.clamp(-6e4, 6e4).to(dtype).to(device)
    gt_classes = torch.randint(K + 1, (30,), generator=generator).to(device)
    exact = loss_of(name, logits.double(), gt_classes, tmp_path)
    with torch.autocast(device.type, dtype):
        actual = loss_of(name, logits, gt_classes, tmp_path)
    assert all(loss.dtype == torch.float32 for loss in actual[0])
    torch.testing.assert_close(actual[0], [x.float() for x in exact[0]], rtol=1e-4, atol=1e-6)
    precision = torch.finfo(dtype).eps
    for gradient, expected in zip(actual[1], exact[1], strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(
            gradient.double(), expected, rtol=4 * precision, atol=1e-6 * SCALE
        )
    assert actual[2].dtype == torch.float32
    torch.testing.assert_close(actual[2], exact[2].float(), rtol=1e-4, atol=1e-6)
    for buffer, tensor in exact[3].items():
        torch.testing.assert_close(
            actual[3][buffer], tensor.to(actual[3][buffer]), rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed_precision")
    with host_waits.training_set(folder):
        yield folder


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_in_mixed_precision(training_set, tmp_path, name):
    options = (host_waits.LOSS, name, "SOLVER.AMP.ENABLED", True)
    loop = host_waits.trainer_of(tmp_path, *options).loop
    with EventStorage(0) as loop.storage:
        for loop.iter in range(2):
            loop.run_step()  # which refuses a loss that is not finite
    assert loop.grad_scaler.get_scale() == 2.0**16  # no step was left out
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())


@pytest.mark.gpu
def test_a_checkpoint_moves_between_devices(training_set, tmp_path, device):
    """Model, optimizer, gradient scaler and running state, from a GPU to the host and back."""
    options = (host_waits.LOSS, "eqlv2", "SOLVER.AMP.ENABLED", True)
    first, second = (host_waits.trainer_of(tmp_path / name, *options) for name in "ab")
    with EventStorage(0) as first.loop.storage:
        first.loop.iter = 0
        first.loop.run_step()
    first.checkpointer.save("moved")
    stored = torch.load(tmp_path / "a/moved.pth", map_location="cpu", weights_only=True)
    assert stored["model"]["roi_heads.box_predictor.criterion.pos_grads"].device.type == "cpu"
    on_host = build_model(tiny_cfg(*options[:2], "MODEL.DEVICE", "cpu", *SPECIFIC))
    LongTailCheckpointer(on_host).load(str(tmp_path / "a/moved.pth"))
    second.checkpointer.load(str(tmp_path / "a/moved.pth"))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(on_host.state_dict()[name], tensor.cpu()), name
        assert torch.equal(second.model.state_dict()[name], tensor), name
    momenta = [list(t.loop.optimizer.state.values()) for t in (first, second)]
    for ours, theirs in zip(*momenta, strict=True):
        assert ours["momentum_buffer"].device.type == device.type
        assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"])
    assert second.loop.grad_scaler.state_dict() == first.loop.grad_scaler.state_dict()
