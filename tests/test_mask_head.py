"""The mask head gives Detectron2's masks, losses and gradients, with Detectron2's parameters."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from balms_det.modeling import mask_head
from balms_det.modeling.mask_head import LongTailMaskHead

K, CHANNELS, SIDE = 50, 8, 32


def heads(num_classes=K):
    """Detectron2's head and ours, with the same parameters, in float64."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=CHANNELS, width=7, height=7)
    theirs, ours = (
        head(shape, num_classes=num_classes, conv_dims=[CHANNELS] * 3).double()
        for head in (MaskRCNNConvUpsampleHead, LongTailMaskHead)
    )
    for parameter in theirs.parameters():  # the predictor starts near zero
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batch(counts, seed=0):
    """Features of sum(counts) instances, and the instances of one image per count."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for count in counts:
        corner = 16 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        boxes = Boxes(torch.cat([corner, corner + 12], dim=1))
        classes = torch.randint(K, (count,), generator=generator)
        masks = torch.rand(count, SIDE, SIDE, generator=generator) > 0.5
        image = Instances((SIDE, SIDE))
        image.proposal_boxes = image.pred_boxes = boxes
        image.gt_classes = image.pred_classes = classes
        image.gt_masks = BitMasks(masks)
        images.append(image)
    features = torch.randn(sum(counts), CHANNELS, 7, 7, generator=generator, dtype=torch.float64)
    return features, images


@pytest.mark.parametrize("num_classes", [K, 1])
@pytest.mark.parametrize("counts", [[5, 3], [4, 0, 2], [0, 0], []])
def test_loss_and_gradients_are_detectron2s(num_classes, counts):
    theirs, ours = heads(num_classes)
    losses = []
    for head in (theirs, ours):
        features, images = batch(counts)
        with EventStorage():
            loss = head.train()(features.requires_grad_(), images)["loss_mask"]
        loss.backward()
        losses.append((loss, features.grad, *(p.grad for p in head.parameters())))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_on_a_gpu_features_are_not_copied(device, memory_format):
    """Neither order of a feature map in memory is turned into the other."""
    theirs, ours = (head.to(device).eval() for head in heads())
    features, (image,) = batch([9])
    x = features.to(device).to(memory_format=memory_format)
    classes = image.pred_classes.to(device)

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    names = []
    with torch.no_grad(), Operations():
        logits = ours.own_class_logits(x, classes)
    assert not {"clone", "copy_", "_to_copy"} & set(names), names
    with torch.no_grad():
        expected = theirs.layers(x)[torch.arange(9, device=device), classes, None]
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_classes", [K, 1])
@pytest.mark.parametrize("counts", [[5, 3], [4, 0, 2], [0, 0]])
def test_masks_are_detectron2s(num_classes, counts):
    theirs, ours = heads(num_classes)
    masks = []
    for head in (theirs, ours):
        features, images = batch(counts)
        with torch.no_grad():
            masks.append([image.pred_masks for image in head.eval()(features, images)])
    torch.testing.assert_close(*masks, rtol=1e-10, atol=1e-12)


def test_the_mask_depends_on_the_class():
    _, ours = heads()
    features, (image,) = batch([1])
    first = ours.eval()(features, [image])[0].pred_masks
    image.pred_classes = (image.pred_classes + 1) % K
    assert not torch.equal(ours(features, [image])[0].pred_masks, first)


def test_checkpoints_are_interchangeable():
    theirs, ours = heads()
    assert [(n, p.shape) for n, p in theirs.named_parameters()] == [
        (n, p.shape) for n, p in ours.named_parameters()
    ]


@pytest.mark.parametrize("counts", [[5, 3], [0, 0]])
def test_cosine_masks_are_those_of_the_whole_layer(counts):
    shape = ShapeSpec(channels=CHANNELS, width=7, height=7)
    head = LongTailMaskHead(
        shape, num_classes=K, conv_dims=[CHANNELS] * 3, cosine_temperature=20.0
    ).double()
    features, images = batch(counts)
    classes = torch.cat([image.gt_classes for image in images])
    whole = head.layers(features)[torch.arange(len(features)), classes][:, None]
    torch.testing.assert_close(
        head.own_class_logits(features, classes), whole, rtol=1e-10, atol=1e-12
    )


def test_masks_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    theirs, ours = heads()
    features, images = batch([20, 7, 13])
    whole = [image.pred_masks for image in theirs.eval()(features, images)]
    for size in (1, 16, 300):
        monkeypatch.setattr(mask_head, "_CHUNK_ON_CPU", size)
        masks = [image.pred_masks for image in ours.eval()(features, images)]
        torch.testing.assert_close(masks, whole, rtol=1e-10, atol=1e-12)
