"""Every method of the registry, through the criterion that the predictor uses."""

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import oracles
import peer_oracles
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import get_cfg
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch.autograd import gradcheck

from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.config import add_balms_config
from balms_det.losses.activations import SIGMOID, SOFTMAX, GroupSoftmax
from balms_det.losses.criterion import Criterion, build_criterion
from balms_det.losses.loss import Loss, RunningState
from balms_det.losses.registry import LOSSES
from balms_det.modeling.predictor import training_iteration
from balms_det.runtime.errors import InputError
from balms_det.runtime.processes import exit_without_teardown

K = 6
RTOL = 1e-10


@dataclass(frozen=True)
class Case:
    """A configuration of the loss.

    Attributes:
        oracle: gives the loss's elements, see tests/oracles.py.
        plain: overrides that turn the method into the loss of `plain_oracle`.
        smooth: overrides that turn off what has no gradient by definition.
        equal_counts_are_plain: whether equal class counts do the same as `plain`.
    """

    oracle: object
    overrides: tuple = ()
    plain: tuple = ()
    plain_oracle: object = oracles.softmax_elements
    smooth: tuple = ()
    equal_counts_are_plain: bool = False


# Where a method draws at random, what is drawn is fixed here and has a test of its own below.
CASES = {
    "softmax": Case(oracles.softmax_elements),
    "sigmoid": Case(oracles.sigmoid_elements, plain_oracle=oracles.sigmoid_elements),
    "balanced_softmax": Case(
        oracles.balanced_softmax_elements, plain=("MARGIN.TAU", 0.0), equal_counts_are_plain=True
    ),
    "balanced_sigmoid": Case(
        oracles.balanced_sigmoid_elements,
        plain=("MARGIN.TAU", 0.0),
        plain_oracle=oracles.sigmoid_elements,
        equal_counts_are_plain=True,
    ),
    "focal": Case(
        oracles.focal_elements,
        plain=("FOCAL.GAMMA", 0.0, "FOCAL.ALPHA", -1.0),
        plain_oracle=oracles.sigmoid_elements,
    ),
    "ldam": Case(oracles.ldam_elements, plain=("LDAM.MAX_MARGIN", 0.0)),
    "eql": Case(
        partial(oracles.equalization_elements, threshold=0.1),
        ("TAIL_THRESHOLD", 0.1),
        ("TAIL_THRESHOLD", 0.0),
        oracles.sigmoid_elements,
    ),
    "softmax_eql": Case(
        partial(oracles.softmax_equalization_elements, threshold=0.1),
        ("TAIL_THRESHOLD", 0.1, "EQL.GAMMA", 1.0),
        ("EQL.GAMMA", 0.0),
    ),
    "eqlv2": Case(
        oracles.eqlv2_elements,
        plain=("EQLV2.MU", 1e-9, "EQLV2.GAMMA", 1e12),
        plain_oracle=oracles.sigmoid_elements,
    ),
    "seesaw": Case(
        oracles.seesaw_elements,
        plain=("SEESAW.P", 0.0, "SEESAW.Q", 0.0),
        plain_oracle=oracles.plain_softmax_with_objectness_elements,
        smooth=("SEESAW.Q", 0.0),
    ),
    "softmax_pcb": Case(oracles.pairwise_softmax_elements, plain=("PCB.ALPHA", 0.0)),
    "seesaw_pcb": Case(
        oracles.pairwise_seesaw_elements,
        plain=("PCB.ALPHA", 0.0, "SEESAW.P", 0.0, "SEESAW.Q", 0.0),
        plain_oracle=oracles.plain_softmax_with_objectness_elements,
        smooth=("SEESAW.Q", 0.0),
    ),
    "eqlv2_pcb": Case(
        oracles.pairwise_eqlv2_elements,
        plain=("PCB.ALPHA", 0.0, "EQLV2.MU", 1e-9, "EQLV2.GAMMA", 1e12),
        plain_oracle=oracles.sigmoid_elements,
    ),
    "acsl": Case(
        partial(peer_oracles.acsl_elements, ratios=(0.0, 0.0, 1.0)),
        ("ACSL.BACKGROUND_RATIOS", (0.0, 0.0, 1.0)),
        ("ACSL.SCORE_THRESHOLD", 0.0, "ACSL.BACKGROUND_RATIOS", (1.0, 1.0, 1.0)),
        oracles.sigmoid_elements,
    ),
    "droploss": Case(
        partial(peer_oracles.drop_loss_elements, threshold=1.0),
        ("TAIL_THRESHOLD", 1.0),
        ("TAIL_THRESHOLD", 0.0),
        oracles.sigmoid_elements,
    ),
    "loce": Case(peer_oracles.equilibrium_elements, plain=("LOCE.MOMENTUM", 1.0)),
    # Neither its weights nor its shifts can be turned off; without them it is tested by itself.
    "ecm": Case(peer_oracles.ecm_elements, plain_oracle=peer_oracles.ecm_elements),
    "gol": Case(
        partial(peer_oracles.gumbel_optimised_elements, threshold=1.0),
        ("TAIL_THRESHOLD", 1.0),
        ("TAIL_THRESHOLD", 0.0),
        peer_oracles.gumbel_elements,
    ),
    "bags": Case(
        partial(peer_oracles.bags_elements, beta=1e9),
        ("BAGS.BETA", 1e9),
        ("BAGS.BOUNDARIES", ()),
        peer_oracles.two_softmaxes_elements,
    ),
    # Variants: a method, a colon, and what is varied.
    "focal: gamma": Case(
        partial(oracles.focal_elements, gamma=0.5, alpha=-1.0),
        ("FOCAL.GAMMA", 0.5, "FOCAL.ALPHA", -1.0),
        ("FOCAL.GAMMA", 0.0),
        oracles.sigmoid_elements,
    ),
    "seesaw_pcb: one softmax": Case(
        partial(oracles.pairwise_seesaw_elements, objectness=False),
        ("SEESAW.OBJECTNESS", False),
        ("PCB.ALPHA", 0.0, "SEESAW.P", 0.0, "SEESAW.Q", 0.0),
        smooth=("SEESAW.Q", 0.0),
    ),
    "seesaw: one softmax": Case(
        partial(oracles.seesaw_elements, objectness=False),
        ("SEESAW.OBJECTNESS", False),
        ("SEESAW.P", 0.0, "SEESAW.Q", 0.0),
        smooth=("SEESAW.Q", 0.0),
    ),
}
# Batches of two rows then leave three or four of six classes out.
FEDERATED = ("FEDERATED.ENABLED", True, "FEDERATED.NUM_CLASSES", 3)
WEIGHTS = {
    "inverse": ("CLASS_WEIGHTS.NAME", "inverse"),
    "effective_number": ("CLASS_WEIGHTS.NAME", "effective_number", "CLASS_WEIGHTS.BETA", 0.9),
}


def class_stats(instance_counts=(400, 90, 30, 7, 1, 0), image_counts=(150, 60, 30, 5, 1, 0)):
    return ClassStats(
        image_counts=np.array(image_counts),
        instance_counts=np.array(instance_counts),
        num_images=220,
        num_annotated_images=200,
        category_ids=np.arange(1, K + 1),
        names=tuple(f"class {j}" for j in range(K)),
        groups=("f", "c", "c", "r", "r", "r"),
    )


def criterion(*overrides, stats=None):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_list(
        [f"MODEL.LONG_TAIL.{o}" if i % 2 == 0 else o for i, o in enumerate(overrides)]
    )
    return build_criterion(cfg.MODEL.LONG_TAIL, K, stats or class_stats(), training_iteration)


def criterion_of(case, *overrides, **kwargs):
    """The criterion of an entry of CASES, with further keys of LOSS."""
    keys = ("NAME", case.split(":")[0], *CASES[case].overrides, *overrides)
    loss = [f"LOSS.{key}" if i % 2 == 0 else key for i, key in enumerate(keys)]
    return criterion(*loss, **kwargs)


def batch(built, num_rows=10, seed=1, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    shape = num_rows, built.activation.num_logits(K)
    logits = 2 * torch.randn(shape, generator=generator, dtype=dtype)
    return logits, (torch.arange(num_rows) + seed) % (K + 1)


def batches(built, num_batches=3, **kwargs):
    return [batch(built, seed=seed, **kwargs) for seed in range(num_batches)]


def expected_loss(oracle, logits, gt, stats, memory, row_weights=None, mask=None):
    """Sum over the oracle's elements, weighted, divided by the number of rows."""
    rows, columns = len(gt), logits.shape[1]
    row_weights = row_weights or [1.0] * K
    weights = [
        [
            ([*row_weights, 1.0][y]) * (1.0 if mask is None or j >= K else float(mask[j]))
            for j in range(columns)
        ]
        for y in gt.tolist()
    ]
    elements = oracle(logits.tolist(), gt.tolist(), stats, memory, weights)
    total = sum(
        w * e
        for ws, es in zip(weights, elements, strict=True)
        for w, e in zip(ws, es, strict=False)
    )
    return total / rows


def check_against_oracle(built, oracle, *, row_weights=None, num_rows=10):
    """Losses and running state of a few batches."""
    memory = {}
    for step, (logits, gt) in enumerate(batches(built, num_rows=num_rows)):
        mask = None
        if built.federated is not None:
            torch.manual_seed(step)
            mask = built.federated(gt)
            assert 2 <= mask.sum() <= 4
        torch.manual_seed(step)
        actual = built(logits, gt).item()
        expected = expected_loss(oracle, logits, gt, class_stats(), memory, row_weights, mask)
        assert actual == pytest.approx(expected, rel=RTOL)
    state = built.state_dict()
    assert set(state) == set(memory)
    for name, value in memory.items():
        np.testing.assert_allclose(state[name], value, rtol=RTOL)


@pytest.fixture
def in_float64():
    """Criteria hold their constants in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def test_every_method_has_an_oracle():
    assert {case for case in CASES if ":" not in case} == set(LOSSES)


def test_loss_and_state_agree_with_the_oracle(case, in_float64):
    check_against_oracle(criterion_of(case), CASES[case].oracle)


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_class_weights_agree_with_the_oracle(case, weighting, in_float64):
    counts = class_stats().instance_counts.tolist()
    row_weights = (
        oracles.inverse_frequency_weights(counts)
        if weighting == "inverse"
        else oracles.effective_number_weights(counts, 0.9)
    )
    row_weights = oracles.with_mean_one_over_instances(row_weights, counts)
    built = criterion_of(case, *WEIGHTS[weighting])
    check_against_oracle(built, CASES[case].oracle, row_weights=row_weights)


def with_independent_classes():
    return [case for case in CASES if LOSSES[case.split(":")[0]].has_independent_classes()]


@pytest.mark.parametrize("case", with_independent_classes())
def test_federated_classes_agree_with_the_oracle(case, in_float64):
    check_against_oracle(criterion_of(case, *FEDERATED), CASES[case].oracle, num_rows=2)


@pytest.mark.parametrize("case", with_independent_classes())
def test_class_weights_and_federated_classes_compose(case, in_float64):
    counts = class_stats().instance_counts.tolist()
    row_weights = oracles.with_mean_one_over_instances(
        oracles.inverse_frequency_weights(counts), counts
    )
    built = criterion_of(case, *FEDERATED, *WEIGHTS["inverse"])
    check_against_oracle(built, CASES[case].oracle, row_weights=row_weights, num_rows=2)


def test_limiting_case_is_the_plain_loss(case, in_float64):
    built = criterion_of(case, *CASES[case].plain)
    for logits, gt in batches(built):
        plain = expected_loss(CASES[case].plain_oracle, logits, gt, class_stats(), {})
        assert built(logits, gt).item() == pytest.approx(plain, rel=RTOL)


def test_equal_counts_make_weights_and_margins_plain(case, in_float64):
    equal = class_stats((9,) * K, (9,) * K)
    plain_keys = () if CASES[case].equal_counts_are_plain else CASES[case].plain
    for weighting in WEIGHTS.values():
        built = criterion_of(case, *plain_keys, *weighting, stats=equal)
        for logits, gt in batches(built):
            plain = expected_loss(CASES[case].plain_oracle, logits, gt, equal, {})
            assert built(logits, gt).item() == pytest.approx(plain, rel=RTOL)


VARIANTS = {
    **{case: (case, ()) for case in CASES},
    **{f"{case} + weights": (case, WEIGHTS["effective_number"]) for case in CASES},
    **{f"{case} + federated": (case, FEDERATED) for case in with_independent_classes()},
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    """Every method alone, with class weights and, where it can be, with federated classes."""
    case, overrides = VARIANTS[request.param]
    return partial(criterion_of, case, *overrides)


def after_batches(built, num_batches=2):
    """`built` with a running state that is not the initial one."""
    for logits, gt in batches(built, num_batches):
        built(logits, gt)
    return built


def test_gradient_equals_finite_differences(request, variant, in_float64):
    case = VARIANTS[request.node.callspec.params["variant"]][0]
    built = after_batches(variant(*CASES[case].smooth)).eval()
    logits, gt = batch(built, seed=5)

    def loss(logits):
        torch.manual_seed(0)
        return built(logits, gt)

    assert gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("case", ["seesaw", "seesaw: one softmax"])
def test_seesaw_takes_its_factors_for_constants(case, in_float64):
    """The gradient at a negative class j of a row of class y is S_yj exp(z_j) / sum_k S_yk z_k."""
    built = after_batches(criterion_of(case)).eval()
    logits, gt = batch(built)
    built(logits.requires_grad_(), gt).backward()
    columns = K if case == "seesaw" else K + 1
    samples = built.class_samples.clamp(min=1).double()
    for row, grad, y in zip(logits.detach(), logits.grad, gt.tolist(), strict=True):
        if y == K:
            continue
        z, probs = row[:columns], row[:columns].softmax(0)
        factors = torch.ones(columns)
        factors[:K] *= (samples / samples[y]).clamp(max=1) ** 0.8
        factors[:K] *= (probs[:K] / probs[y].clamp(min=0.01)).clamp(min=1) ** 2
        factors[y] = 1
        share = factors * z.exp() / (factors * z.exp()).sum()
        share[y] -= 1
        torch.testing.assert_close(grad[:columns], share / len(gt))


def test_loss_is_a_finite_scalar_with_gradient_at_the_logits(variant):
    built = variant()
    logits, gt = batch(built)
    loss = built(logits.requires_grad_(), gt)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite() and loss > 0
    assert logits.grad.abs().sum() > 0


def test_all_background_batch_is_finite_and_pushes_no_class_up(variant):
    built = variant()
    logits, _ = batch(built)
    gt = torch.full((len(logits),), K)
    for _ in range(2):  # the second time with the state that such a batch leaves
        logits = logits.detach().requires_grad_()
        loss = built(logits, gt)
        loss.backward()
        assert loss > 0 and loss.isfinite()
        assert logits.grad.isfinite().all()
        assert (logits.grad[:, :K] >= 0).all()


def test_empty_batch_backpropagates_and_teaches_nothing(variant):
    built = variant()
    before = copy.deepcopy(built.state_dict())
    logits, gt = batch(built, num_rows=0)
    loss = built(logits.requires_grad_(), gt)
    loss.backward()
    assert loss == 0
    assert logits.grad.shape == logits.shape
    torch.testing.assert_close(dict(built.state_dict()), dict(before), rtol=0, atol=0)


def test_class_without_any_example_is_finite(variant):
    built = variant(stats=class_stats((0,) * K, (0,) * K))
    for logits, gt in batches(built):
        logits.requires_grad_()
        loss = built(logits, gt)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite_in_value_and_gradient(variant, dtype):
    built = variant()
    _, gt = batch(built)
    largest = torch.finfo(torch.float16).max
    for extreme in (largest, -largest, 0.0):
        logits = torch.full((len(gt), built.activation.num_logits(K)), extreme, dtype=dtype)
        alternating = torch.where(torch.arange(logits.shape[1]) % 2 == 0, logits, -logits)
        for x in (logits, alternating):
            x = x.clone().requires_grad_()
            value = built(x, gt)
            value.backward()
            assert value.isfinite()
            assert x.grad.isfinite().all()
            assert x.grad.dtype == dtype
    assert all(tensor.isfinite().all() for tensor in built.state_dict().values())


def test_inputs_are_left_unchanged(variant):
    built = variant()
    logits, gt = batch(built)
    before = logits.clone(), gt.clone()
    built(logits, gt)
    assert torch.equal(logits, before[0])
    assert torch.equal(gt, before[1])


def test_state_round_trips_through_a_checkpoint(variant, tmp_path):
    trained, fresh = after_batches(variant()), variant()
    torch.save(trained.state_dict(), tmp_path / "state.pth")
    fresh.load_state_dict(torch.load(tmp_path / "state.pth"))
    logits, gt = batch(trained, seed=9)
    values = []
    for built in (trained, fresh):
        torch.manual_seed(0)
        values.append(built(logits, gt))
    assert torch.equal(*values)
    torch.testing.assert_close(dict(trained.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)


def test_state_dict_holds_the_running_state_and_nothing_of_the_training_set(variant):
    built = variant()
    state = built.loss.state
    # Group softmax's logits mean nothing without its groups.
    groups = {"activation.class_groups"} if isinstance(built.activation, GroupSoftmax) else set()
    assert set(built.state_dict()) == groups | set(state.initial if state else ())


@pytest.mark.parametrize(
    "case", [case for case in CASES if criterion_of(case).loss.state is not None]
)
def test_evaluation_changes_no_state_and_training_does(case):
    built = after_batches(criterion_of(case))
    before = copy.deepcopy(built.state_dict())
    logits, gt = batch(built)
    built.eval()
    built(logits, gt)
    torch.testing.assert_close(dict(built.state_dict()), dict(before), rtol=0, atol=0)
    built.train()
    built(logits, gt)
    assert not all(torch.equal(a, built.state_dict()[name]) for name, a in before.items())


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Per process and entry of VARIANTS, what `steps_of_half` gives."""
    folder = tmp_path_factory.mktemp("two_processes")
    mp.spawn(_run_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@exit_without_teardown
def _run_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(
        {name: steps_of(name, slice(rank, None, 2)) for name in VARIANTS}, f"{folder}/{rank}.pth"
    )


def steps_of(name, rows):
    """Losses and gradients of a few batches, of which only `rows` are seen, and the last state."""
    case, overrides = VARIANTS[name]
    built = criterion_of(case, *overrides)
    steps = []
    for logits, gt in batches(built, num_rows=2 * (2 * K + 2)):
        # Both halves hold every class, so that the federated ones are the same in both.
        gt = gt.sort().values
        logits = logits[rows].clone().requires_grad_()
        loss = built(logits, gt[rows])
        loss.backward()
        steps.append((loss.detach(), logits.grad))
    return steps, dict(built.state_dict())


@pytest.mark.e2e
def test_two_processes_have_the_loss_gradient_and_state_of_one(request, variant, two_processes):
    name = request.node.callspec.params["variant"]
    steps, state = steps_of(name, slice(None))
    (first, first_state), (second, second_state) = (process[name] for process in two_processes)
    torch.testing.assert_close(first_state, second_state, rtol=0, atol=0)
    torch.testing.assert_close(first_state, state, rtol=1e-6, atol=0)
    for one, (loss_a, grad_a), (loss_b, grad_b) in zip(steps, first, second, strict=True):
        loss, grad = one
        # Gradients are averaged over the processes.
        torch.testing.assert_close((loss_a + loss_b) / 2, loss)
        torch.testing.assert_close(torch.stack([grad_a, grad_b], 1).flatten(0, 1) / 2, grad)


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def test_probabilities_have_a_background_column_and_lie_between_0_and_1(name):
    built = criterion("LOSS.NAME", name)
    logits, _ = batch(built)
    for scale in (1, 1e4):
        probs = built.activation.probs((scale * logits).half())
        assert probs.shape == (len(logits), K + 1)
        assert probs.dtype == torch.float32
        assert ((probs >= 0) & (probs <= 1)).all()
        if built.activation.exclusive:
            torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(logits)))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bags"])
def test_margins_shift_training_only(name):
    """The probabilities are those of the raw logits, whatever the class counts."""
    head_heavy, uniform = (
        criterion("LOSS.NAME", name, stats=class_stats(counts, counts))
        for counts in [(200, 90, 30, 7, 1, 0), (9, 9, 9, 9, 9, 9)]
    )
    logits, _ = batch(head_heavy)
    assert torch.equal(head_heavy.activation.probs(logits), uniform.activation.probs(logits))


def test_tensors_follow_the_model(name):
    built = criterion("LOSS.NAME", name).to("meta")
    assert all(tensor.device.type == "meta" for tensor in built.buffers())


def test_inference_needs_no_statistics_but_training_says_that_it_does():
    cfg = get_cfg()
    add_balms_config(cfg)
    built = build_criterion(cfg.MODEL.LONG_TAIL, K, None)
    logits, gt = batch(built)
    assert built.activation.probs(logits).shape == (len(logits), K + 1)
    with pytest.raises(InputError, match="STATS_FILE"):
        built(logits, gt)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "loce"])
def test_methods_without_constants_of_the_training_set_need_no_statistics(name):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.MODEL.LONG_TAIL.LOSS.NAME = name
    built = build_criterion(cfg.MODEL.LONG_TAIL, K, None)
    logits, gt = batch(built)
    assert built(logits, gt).isfinite()


def test_released_margins_are_a_configuration():
    """Counts of images over images with annotations, without the constant (authors' release)."""
    built = criterion("COUNT_BY", "images", "LOSS.MARGIN.CONSTANT", "drop")
    image_freq = np.array([150, 60, 30, 5, 1, 1]) / 200  # a count of zero is clamped to one
    np.testing.assert_allclose(built.loss.margins, np.log((1 - image_freq) / image_freq), rtol=1e-6)


def test_margin_strength_scales_the_margin_and_zero_turns_it_off():
    full, half, none = (criterion("LOSS.MARGIN.TAU", tau) for tau in (1.0, 0.5, 0.0))
    torch.testing.assert_close(2 * half.loss.margins, full.loss.margins)
    logits, gt = batch(none)
    assert torch.equal(none(logits, gt), losses.sigmoid_loss(logits, gt))


def test_margin_rows_are_a_configuration():
    foreground, everywhere = (criterion("LOSS.MARGIN.ROWS", rows) for rows in ("foreground", "all"))
    logits, gt = batch(foreground)
    assert foreground(logits, gt) != everywhere(logits, gt)


def test_sigmoid_starts_at_the_prior_and_softmax_at_zero():
    prior = 0.01
    bias = SIGMOID.initial_bias(K, prior)
    torch.testing.assert_close(bias.sigmoid(), torch.full((K,), prior))
    assert torch.equal(SOFTMAX.initial_bias(K, prior), torch.zeros(K + 1))


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(InputError, match="balanced_sigmoid"):
        criterion("LOSS.NAME", "balanced_sigmiod")


def test_deferred_weights_start_at_their_iteration():
    weighted, deferred, plain = (
        criterion_of("softmax", *keys)
        for keys in [
            WEIGHTS["inverse"],
            (*WEIGHTS["inverse"], "CLASS_WEIGHTS.START_ITER", 100),
            (),
        ]
    )
    logits, gt = batch(plain)
    for iteration, expected in [(0, plain), (99, plain), (100, weighted), (101, weighted)]:
        with EventStorage(iteration):  # as a trainer that resumes there does
            assert torch.equal(deferred(logits, gt), expected(logits, gt))
    assert not torch.equal(weighted(logits, gt), plain(logits, gt))


def test_softmax_eql_spares_a_tail_class_with_the_probability_gamma():
    num_rows = 4000
    logits, gt = torch.zeros(num_rows, K + 1), torch.zeros(num_rows, dtype=torch.int64)
    is_tail = torch.tensor([False] * (K - 1) + [True])
    torch.manual_seed(0)
    rows = losses.softmax_equalization_loss(logits, gt, is_tail, gamma=0.3, reduction="none")
    spared = torch.isclose(rows, torch.tensor(float(K)).log())
    assert (spared | torch.isclose(rows, torch.tensor(K + 1.0).log())).all()
    assert spared.float().mean().item() == pytest.approx(0.3, abs=0.04)  # 5 standard deviations


@pytest.mark.parametrize("num_sampled", [1, 4, 7, 20])
def test_federated_classes_are_those_of_detectron2(num_sampled):
    """Without chance: as many positive rates as are to be drawn."""
    gt = torch.tensor([2, 2, K, 0])
    rates = torch.zeros(K)
    rates[[4, 1, 5][: max(num_sampled - 3, 0)]] = torch.tensor([3.0, 0.1, 2.0])[
        : max(num_sampled - 3, 0)
    ]
    ours = losses.federated_classes(gt, rates, num_sampled)
    drawable = 3 + int((rates > 0).sum())
    theirs = FastRCNNOutputLayers.get_fed_loss_classes(
        None, gt, min(num_sampled, drawable), K, rates
    )
    assert set(ours.nonzero().flatten().tolist()) == set(theirs.tolist()) - {K}


def test_federated_classes_are_drawn_as_often_as_by_detectron2():
    gt, rates = torch.tensor([2, K]), torch.tensor([8.0, 4.0, 4.0, 2.0, 1.0, 0.0])
    draws = 4000
    ours, theirs = torch.zeros(K), torch.zeros(K + 1)
    torch.manual_seed(0)
    for _ in range(draws):
        ours += losses.federated_classes(gt, rates, 4)
        theirs[FastRCNNOutputLayers.get_fed_loss_classes(None, gt, 4, K, rates)] += 1
    assert ours.sum() == 3 * draws
    torch.testing.assert_close(ours / draws, theirs[:K] / draws, rtol=0, atol=0.05)
    assert ours[5] == 0 and ours[2] == draws


def test_federated_keeps_every_class_of_a_batch_that_holds_more():
    mask = losses.federated_classes(torch.arange(K), torch.zeros(K), 2)
    assert mask.all()


def test_masked_classes_have_no_gradient():
    built = criterion_of("sigmoid", *FEDERATED)
    logits, gt = batch(built, num_rows=2)
    built(logits.requires_grad_(), gt).backward()
    without = (logits.grad == 0).all(dim=0)
    assert 2 <= without.sum() <= 4
    assert not without[gt[gt < K]].any()


def test_state_may_change_before_the_backward_pass_that_needs_it():
    class Totals(Loss):
        link = SIGMOID
        state = RunningState(
            initial={"total": torch.ones(K)},
            observe=lambda logits, gt, state, weights: {"total": torch.ones(K)},
            advance=losses.accumulated,
            order="after",
        )

        def elements(self, logits, gt_classes, state):
            return logits * state["total"]

    built = Criterion(Totals())
    logits = torch.zeros(1, K, requires_grad=True)
    built(logits, torch.tensor([0])).backward()
    assert torch.equal(logits.grad, torch.ones(1, K))
    assert torch.equal(built.total, torch.full((K,), 2.0))


def test_state_of_processes_is_summed_only_where_there_are_several(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: pytest.fail("there is one process"))
    after_batches(criterion_of("eqlv2"))


def test_groups_of_a_checkpoint_count_in_the_loss_as_at_inference():
    trained = criterion_of("bags")
    other = criterion_of("bags", stats=class_stats((9,) * K, (9,) * K))
    logits, gt = batch(trained)
    assert not torch.equal(other(logits, gt), trained(logits, gt))
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other(logits, gt), trained(logits, gt))
    assert torch.equal(other.activation.probs(logits), trained.activation.probs(logits))


def test_group_softmax_is_not_trained_without_statistics():
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.MODEL.LONG_TAIL.LOSS.NAME = "bags"
    built = build_criterion(cfg.MODEL.LONG_TAIL, K, None)
    with pytest.raises(InputError, match="STATS_FILE"):
        built(*batch(built))
