"""Pairwise Class Balance: when it begins, its limits, and what it does to a confused class."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from balms_det import losses
from balms_det.losses.criterion import Criterion
from balms_det.losses.loss import TrainingClasses
from balms_det.losses.registry import LOSSES
from balms_det.modeling.predictor import training_iteration

K = 4
NAMES = ("softmax_pcb", "seesaw_pcb", "eqlv2_pcb")
BASES = dict(zip(NAMES, ("softmax", "seesaw", "eqlv2"), strict=True))


def built(name, **options):
    method = LOSSES[name]
    training = TrainingClasses(K, None, iteration=training_iteration)
    return Criterion(method.build(training, method.options(**options)))


def batch(criterion, gt, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = len(gt), criterion.activation.num_logits(K)
    return 2 * torch.randn(shape, generator=generator), torch.tensor(gt)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_it_waits_until_each_class_has_been_seen(name):
    """The EQLv2 form sees its own batch only after its loss."""
    ours, plain = built(name), built(BASES[name])
    for step, gt in enumerate(([0, 1, K], [2, 0, K], [1, K, K])):
        logits, gt = batch(ours, gt, step)
        assert torch.equal(ours(logits, gt), plain(logits, gt))
    logits, gt = batch(ours, [3, 0, K], 3)
    assert torch.equal(ours(logits, gt), plain(logits, gt)) == (name == "eqlv2_pcb")
    logits, gt = batch(ours, [1, 2, K], 4)
    assert not torch.isclose(ours(logits, gt), plain(logits, gt), rtol=1e-4)


def test_it_waits_for_its_iteration(name):
    late, plain = built(name, start_iter=100), built(BASES[name])
    for iteration, waits in ((0, True), (99, True), (100, False)):
        logits, gt = batch(late, [0, 1, 2, 3, K], iteration)
        with EventStorage(iteration):
            value = late(logits, gt)
        assert torch.equal(value, plain(logits, gt)) == waits


def test_background_rows_have_the_plain_loss(name):
    ours, plain = built(name), built(BASES[name])
    for step in range(2):
        logits, gt = batch(ours, [0, 1, 2, 3], step)
        ours(logits, gt), plain(logits, gt)
    # The gradients that EQLv2 adds up are those of the soft targets.
    plain.load_state_dict({key: ours.state_dict()[key] for key in plain.state_dict()})
    ours.eval(), plain.eval()
    logits, gt = batch(ours, [K, K], 5)
    torch.testing.assert_close(ours(logits, gt), plain(logits, gt))


def test_without_confusion_the_targets_are_the_classes():
    gt = torch.tensor([2, K, 0])
    for scale in (torch.ones(K), torch.tensor([0.1, 1.0, 5.0, 0.01])):
        diagonal = torch.diag(scale).double()
        targets = losses.pairwise_targets(diagonal, gt, sum_to_one=True)
        assert torch.equal(targets[[0, 2]], torch.eye(K).double()[[2, 0]])
        assert targets[1].tolist() == [0] * K


def test_targets_of_a_row_are_the_column_of_its_class():
    confusion = torch.arange(1, K * K + 1, dtype=torch.float64).reshape(K, K)
    targets = losses.pairwise_targets(confusion, torch.tensor([1]), sum_to_one=False)
    assert targets.tolist() == [[2, 6, 10, 14]]
    targets = losses.pairwise_targets(confusion, torch.tensor([1]), sum_to_one=True)
    torch.testing.assert_close(targets[0] * 32, confusion[:, 1])


def test_a_class_that_is_taken_for_another_is_pushed_back():
    """All objects of class 3 look like class 0: class 0's examples then push class 3's logit up."""
    ours, plain = built("softmax_pcb"), built("softmax")
    confused = torch.full((K, K + 1), -4.0)
    confused[:, :K] += 8 * torch.eye(K)
    confused[3] = torch.tensor([4.0, -4, -4, -4, -4])
    for _ in range(3):
        ours(confused, torch.arange(K))
    gradients = []
    for criterion in (ours.eval(), plain):
        logits = torch.zeros(1, K + 1, requires_grad=True)
        criterion(logits, torch.tensor([0])).backward()
        gradients.append(logits.grad[0])
    assert gradients[1][3] > 0
    assert gradients[0][3] < gradients[0][1]
    assert gradients[0][3] < gradients[1][3]


def test_momentum_one_keeps_the_first_state_and_zero_the_last_batch():
    gt = torch.tensor([0, 1, 1, K])
    scores = torch.rand(4, K, generator=torch.Generator().manual_seed(0))
    sums = losses.confusion_observe(scores, gt)
    state = {
        "confusion": torch.full((K, K), 0.25, dtype=torch.float64),
        "confusion_rows": torch.ones(K, dtype=torch.int64),
    }
    kept = losses.confusion_advance(state, sums, momentum=1.0, rows_sum_to_one=False)
    assert torch.equal(kept["confusion"], state["confusion"])
    assert kept["confusion_rows"].tolist() == [2, 3, 1, 1]
    last = losses.confusion_advance(state, sums, momentum=0.0, rows_sum_to_one=False)
    torch.testing.assert_close(last["confusion"][1], scores[1:3].double().mean(0))
    assert torch.equal(last["confusion"][2:], state["confusion"][2:])  # not in the batch
    summed = losses.confusion_advance(state, sums, momentum=0.5, rows_sum_to_one=True)
    torch.testing.assert_close(summed["confusion"].sum(dim=1), torch.ones(K).double())


def test_on_one_softmax_the_loss_is_a_divergence_up_to_a_constant():
    """The authors minimise KL(t || p); the gradient is that of the cross-entropy."""
    ours = built("softmax_pcb", share=1.0)
    logits, gt = batch(ours, [0, 1, 2, 3], 1)
    ours(logits, gt)
    ours.eval()
    targets = losses.pairwise_targets(ours.confusion, gt, sum_to_one=True).float()
    grads = []
    for loss in (
        lambda z: ours(z, gt),
        lambda z: torch.nn.functional.kl_div(
            z.log_softmax(1)[:, :K], targets, reduction="sum"
        ) / len(gt),
    ):  # fmt: skip
        z = logits.clone().requires_grad_()
        loss(z).backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)
