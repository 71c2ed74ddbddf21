"""Training in mixed precision does what training in single precision does, up to rounding."""

import copy

import pytest
import torch
from tiny_model import tiny_cfg
from torch import nn

from balms_det.engine.trainer import build_optimizer

pytestmark = pytest.mark.gpu


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
