"""RoIAlign's gradient is torchvision's."""

import pytest
import torch
from detectron2.layers import ROIAlign

from balms_det.modeling.fast.roi_align import FastGradientROIAlign

# Image index and box, in pixels of images of 80 x 96.
REGIONS = {
    "inside": [[0, 8, 8, 40, 60], [1, 3.3, 7.7, 20.1, 9.2]],
    "of all sizes": [[1, 0, 0, 96, 80], [0, 10, 10, 10.5, 10.5], [0, 50, 20, 95, 79]],
    "reaching beyond the image": [[0, -30, -30, 20, 20], [1, 70, 60, 140, 130]],
    "beyond the image": [[0, 200, 200, 300, 300], [1, -90, -90, -20, -20]],
    "without area": [[0, 20, 20, 20, 60], [1, 30, 30, 30, 30]],
    "inside out": [[0, 40, 60, 8, 8]],
    "none": [],
}


def both(layers, regions, dtype=torch.float64, channels=5):
    """The outputs and gradients of several layers, for features with a stride of 4."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 20, 24, generator=generator, dtype=dtype)
    rois = torch.tensor(regions, dtype=torch.float32).reshape(-1, 5)
    found = []
    for layer in layers:
        x = features.clone().requires_grad_()
        y = layer(x, rois)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        (y * weight).sum().backward()
        found.append((y.detach(), x.grad))
    return found


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "legacy"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("regions", REGIONS.values(), ids=REGIONS)
def test_the_gradient_is_torchvisions(regions, sampling_ratio, aligned):
    options = ((7, 5), 0.25, sampling_ratio, aligned)
    layers = ROIAlign(*options), FastGradientROIAlign(*options)
    (y, gradient), (our_y, our_gradient) = both(layers, regions)
    assert torch.equal(our_y, y)
    torch.testing.assert_close(our_gradient, gradient, rtol=0, atol=1e-12)


def test_many_regions_in_single_precision():
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(300, 2, 2, generator=generator).sort(dim=1).values * 90
    image = torch.randint(2, (300, 1), generator=generator)
    regions = torch.cat([image, corners.flatten(1)], dim=1).tolist()
    options = (14, 14), 0.25, 0, True
    layers = ROIAlign(*options), FastGradientROIAlign(*options)
    (_, gradient), (_, ours) = both(layers, regions, dtype=torch.float32)
    assert (ours - gradient).abs().max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype):
    layer = FastGradientROIAlign((7, 7), 0.25, 0, True)
    features = torch.ones(1, 3, 20, 24, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(features, torch.tensor([[0, 8.0, 8, 40, 60]]))
    y.sum().backward()
    assert features.grad.dtype == dtype
    assert float(features.grad.sum()) == pytest.approx(3 * 49, rel=0.02)


def test_without_a_gradient_it_is_detectron2s_own():
    layer = FastGradientROIAlign((7, 7), 0.25, 0, True)
    with torch.no_grad():
        y = layer(torch.ones(1, 3, 20, 24, requires_grad=True), torch.zeros(1, 5))
    assert y.grad_fn is None
