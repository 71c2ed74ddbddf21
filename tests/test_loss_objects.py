"""Losses as objects: explicit arguments, options, links, and what is generated from them."""

import copy
import dataclasses
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

import balms_det
from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.config import add_balms_config
from balms_det.config.keys import option_groups
from balms_det.config.reference import key_reference
from balms_det.losses.criterion import Criterion, build_criterion
from balms_det.losses.loss import TrainingClasses
from balms_det.losses.registry import LOSSES
from balms_det.options import Choices, options_of
from balms_det.runtime.errors import InputError

K = 6
COUNTS = torch.tensor([400, 90, 30, 7, 1, 0])
STATS = ClassStats(
    image_counts=[150, 60, 30, 5, 1, 0],
    instance_counts=COUNTS.tolist(),
    num_images=220,
    num_annotated_images=200,
    category_ids=range(1, K + 1),
    names=[f"class {j}" for j in range(K)],
    groups="fccrrr",
)


def built(name, stats=STATS):
    loss = LOSSES[name]
    return loss.build(TrainingClasses(K, stats), loss.options())


def batch(loss, num_rows=8):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(num_rows, loss.activation.num_logits(K), generator=generator)
    return logits, torch.arange(num_rows) % (K + 1)


def value_of(loss, logits, gt):
    torch.manual_seed(0)
    return loss(logits, gt)


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def test_a_loss_works_in_plain_pytorch():
    loss = losses.BalancedSigmoid(COUNTS, tau=0.5, rows="all")
    logits, gt = batch(loss)
    margins = 0.5 * losses.balanced_sigmoid_margins(COUNTS)
    expected = losses.balanced_sigmoid_loss(logits, gt, margins.float(), rows="all")
    assert torch.equal(loss(logits, gt), expected)
    assert loss(logits, gt, reduction="none").shape == logits.shape
    torch.testing.assert_close(loss.activation.probs(logits)[:, :K], logits.sigmoid())


def test_a_criterion_around_a_loss_is_the_criterion_of_the_configuration(name):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.MODEL.LONG_TAIL.LOSS.NAME = name
    configured = build_criterion(cfg.MODEL.LONG_TAIL, K, STATS)
    plain = Criterion(built(name))
    logits, gt = batch(configured)
    for _ in range(2):  # the second time with running state
        assert torch.equal(value_of(plain, logits, gt), value_of(configured, logits, gt))
    assert plain.state_dict().keys() == configured.state_dict().keys()


def test_a_loss_alone_has_the_value_of_a_criterion_in_evaluation(name):
    loss = built(name)
    logits, gt = batch(loss)
    alone = value_of(loss, logits, gt)
    assert torch.equal(alone, value_of(Criterion(built(name)).eval(), logits, gt))


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "pickle"],
)
def test_criteria_survive_copies(name, again):
    criterion = Criterion(built(name))
    copied = again(criterion)
    logits, gt = batch(criterion)
    for _ in range(2):
        assert torch.equal(value_of(copied, logits, gt), value_of(criterion, logits, gt))
    assert copied.activation is copied.loss.activation


def test_constructors_take_every_option_with_its_default(name):
    parameters = inspect.signature(LOSSES[name]).parameters
    for item in options_of(LOSSES[name].options):
        assert parameters[item.name].default == item.default
        assert parameters[item.name].kind is inspect.Parameter.KEYWORD_ONLY


def test_every_option_states_meaning_and_allowed_values():
    for path, options in option_groups():
        for item in options_of(options):
            assert item.meaning.endswith("."), item
            numeric = isinstance(item.default, (int, float)) and not isinstance(item.default, bool)
            if numeric and path.endswith("LOSS"):
                assert item.allowed is not None, item
            if item.allowed is not None:
                item.check(item.default)


def test_options_that_share_a_key_are_the_same():
    seen = {}
    for path, options in option_groups():
        for item in options_of(options):
            described = dataclasses.replace(item, name="")
            assert seen.setdefault(f"{path}.{item.key}", described) == described


def test_keys_and_defaults_of_the_configuration_are_those_of_the_options():
    cfg = get_cfg()
    before = set(_leaves(cfg))
    add_balms_config(cfg)
    added = {key: value for key, value in _leaves(cfg).items() if key not in before}
    options = {
        f"{path}.{item.key}": item.default
        for path, group in option_groups()
        for item in options_of(group)
    }
    assert added == options


def _leaves(node, prefix=""):
    leaves = {}
    for key, value in node.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.BalancedSigmoid(COUNTS, tau=-1), "tau is -1; set it to 0 or more"),
        (lambda: losses.BalancedSigmoid(COUNTS, rows="odd"), "rows is 'odd'; choose one of"),
        (lambda: losses.Focal(alpha=2), "alpha is 2; set it to a number from 0 to 1"),
        (lambda: losses.EQLv2(K, mu=0), "mu is 0; set it to more than 0"),
        (lambda: losses.BAGS(COUNTS, boundaries=(100, 10)), "boundaries is"),
        (lambda: losses.DropLoss(COUNTS / 500, tail_threshold=2), "tail_threshold is 2"),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_the_allowed_values(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_stats])
def test_a_loss_of_a_training_set_is_not_built_without_statistics(name):
    with pytest.raises(InputError, match="needs class statistics"):
        built(name, stats=None)


def test_the_reference_has_every_key_once():
    reference = key_reference()
    for path, options in option_groups():
        for item in options_of(options):
            key = f"{path}.{item.key}"
            assert reference.count(f"| `{key}` |") == 1, key
            if isinstance(item.allowed, Choices):
                assert all(f"`{choice}`" in reference for choice in item.allowed.names)
    assert "SEESAW" not in key_reference("MODEL.LONG_TAIL.LOSS.FOCAL")


NEW_LOSS = """
from dataclasses import dataclass

from balms_det.losses.activations import SIGMOID
from balms_det.losses.loss import Loss
from balms_det.losses.plain import sigmoid_loss
from balms_det.options import AT_LEAST_0, Options, option


@dataclass(frozen=True)
class PowerOptions(Options):
    power: float = option("POWER.POWER", 2.0, "Power of the elements.", allowed=AT_LEAST_0)


class Power(Loss):
    name = "power"
    options = PowerOptions
    link = SIGMOID

    def __init__(self, *, power=PowerOptions.power):
        super().__init__()
        self._power = power

    def elements(self, logits, gt_classes, state):
        return sigmoid_loss(logits, gt_classes, reduction="none") ** self._power
"""
USE_OF_NEW_LOSS = """
import sys
import balms_det.losses
balms_det.losses.__path__.append(sys.argv[1])
import torch
from detectron2.config import get_cfg
from balms_det.config import add_balms_config
from balms_det.config.keys import check_options
from balms_det.losses.criterion import build_criterion
from balms_det.config.reference import key_reference
cfg = get_cfg()
add_balms_config(cfg)
cfg.merge_from_file(sys.argv[2])
check_options(cfg)
assert "`MODEL.LONG_TAIL.LOSS.POWER.POWER`" in key_reference()
criterion = build_criterion(cfg.MODEL.LONG_TAIL, 3, None)
assert criterion.activation.num_logits(3) == 3
logits = torch.zeros(2, 3)
expected = 3 * torch.tensor(2.0).log() ** 3
torch.testing.assert_close(criterion(logits, torch.tensor([0, 3])), expected)
cfg.MODEL.LONG_TAIL.LOSS.POWER.POWER = -1.0
try:
    check_options(cfg)
except ValueError as error:
    assert "LOSS.POWER.POWER is -1.0; set it to 0 or more" in str(error)
else:
    raise AssertionError("the range is not checked")
"""


def test_a_new_loss_is_one_file_and_one_configuration(tmp_path, run_python):
    """The oracle is demanded by test_every_method_has_an_oracle."""
    package = tmp_path / "losses"
    package.mkdir()
    (package / "power.py").write_text(NEW_LOSS)
    config = tmp_path / "power.yaml"
    config.write_text(
        "MODEL: {LONG_TAIL: {LOSS: {NAME: power, POWER: {POWER: 3.0}}}}\nVERSION: 2\n"
    )
    run_python(USE_OF_NEW_LOSS, package, config)


def test_the_surface_is_lazy_and_complete(run_python):
    for public in balms_det.__all__:
        assert getattr(balms_det, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'LongTialTrainer'"):
        balms_det.LongTialTrainer  # noqa: B018
    run_python(
        "import sys, balms_det\n"
        "assert not {'torch', 'numpy', 'detectron2'} & set(sys.modules)\n"
        "from balms_det import add_balms_config\n"
        "from detectron2.modeling import ROI_HEADS_REGISTRY\n"
        "assert 'LongTailROIHeads' in ROI_HEADS_REGISTRY\n"
    )


def test_documented_addresses_stay():
    from balms_det.class_stats import ClassStats as documented
    from balms_det.losses import balanced_sigmoid_loss, balanced_softmax_loss

    assert documented is ClassStats
    parameters = list(inspect.signature(balanced_softmax_loss).parameters)
    assert parameters == ["labels", "logits", "sample_per_class", "reduction"]
    parameters = list(inspect.signature(balanced_sigmoid_loss).parameters)
    assert parameters == ["logits", "gt_classes", "margins", "rows", "reduction"]
    assert Path(balms_det.config_file("lvis_r50_balsig.yaml")).is_file()
