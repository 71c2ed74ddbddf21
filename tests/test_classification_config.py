"""Configurations of classifiers: the shipped files, and errors that a user can act on."""

import re
from pathlib import Path

import pytest

from balms_det.classification import default_config, load_config
from balms_det.config import config_file
from balms_det.runtime.errors import InputError

CONFIGS = Path(config_file("classification/bases/digits_lt.yaml")).parents[1]
METHODS = (
    "softmax cbw cbs focal cb ldam eql crt lws balanced_softmax decoupled_balanced_softmax "
    "balanced_softmax_cbs balms"
).split()
FEWER = ["softmax", "balanced_softmax", "decoupled_balanced_softmax", "balms"]
SUITES = {
    "digits_lt": METHODS,
    "cifar10_lt": METHODS,
    "cifar100_lt": METHODS,
    "cifar10_lt_cpu": FEWER,
    "cifar10_lt_cpu_long": FEWER,
    "imagenet_lt": FEWER,
    "places_lt": ["softmax", "decoupled_balanced_softmax", "balms"],
}


SHIPPED = [f"{suite}+{method}" for suite, methods in SUITES.items() for method in methods]


def load(name="digits_lt+balms", *opts):
    return load_config(name, [str(opt) for opt in opts])


def test_every_suite_has_a_base_and_every_method_a_file():
    bases = {path.stem.partition("_stage2")[0] for path in CONFIGS.glob("bases/*.yaml")}
    assert bases == set(SUITES)
    directories = ("methods", "second_stages")
    assert {path.stem for d in directories for path in CONFIGS.glob(f"{d}/*.yaml")} == set(METHODS)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_valid_and_its_first_stage_is_the_softmax_of_its_suite(name):
    cfg = load(name, "IMBALANCE", 50, "SEED", 3)
    suite, method = name.split("+")
    assert cfg.OUTPUT_DIR == f"output/{suite}_{method}_if50_seed3"
    second = method in ("crt", "lws", "balms", "decoupled_balanced_softmax", "balanced_softmax_cbs")
    assert cfg.MODEL.LONG_TAIL.DECOUPLE.ENABLED == second
    first = f"output/{suite}_softmax_if50_seed3/model_final.pth"
    assert cfg.MODEL.WEIGHTS == (first if second else "")
    assert (cfg.SAMPLER == "meta") == (method == "balms")


def test_defaults_are_the_releases_first_stage():
    cfg = load("cifar10_lt+softmax")
    solver = cfg.SOLVER
    recipe = (solver.BATCH_SIZE, solver.MAX_ITER, solver.WARMUP_LR, solver.BASE_LR)
    assert recipe == (512, 13000, 0.05, 0.1)
    assert (solver.WARMUP_ITERS, solver.MOMENTUM, solver.WEIGHT_DECAY) == (800, 0.9, 5e-4)
    assert cfg.MODEL.BACKBONE.NAME == "resnet32_cifar"
    assert dict(cfg.AUGMENT) == dict(CROP_PADDING=4, FLIP=True, AUTOAUGMENT=True, CUTOUT=16)


RELEASE = {  # rate, epochs, images of an epoch / batch; meta rate, initial power, meta batch
    "imagenet_lt+decoupled_balanced_softmax": (0.4, 10, 115_846 / 512, None),
    "imagenet_lt+balms": (0.5, 20, 115_846 / 512, (0.001, 0.1, 1024)),
    "places_lt+decoupled_balanced_softmax": (0.02, 10, 62_500 / 256, None),
    "places_lt+balms": (0.02, 10, 62_500 / 256, (0.001, 0.3, 512)),
    "cifar10_lt+balms": (0.1, None, None, (0.01, 0.0, 512)),
}


@pytest.mark.parametrize("name", RELEASE)
def test_second_stages_are_the_releases(name):
    """Its files in config/{ImageNet_LT,Places_LT,CIFAR10_LT}."""
    rate, epochs, iterations, meta = RELEASE[name]
    solver = load(name).SOLVER
    assert rate == solver.BASE_LR
    if epochs is not None:
        assert abs(epochs * iterations - solver.MAX_ITER) < 1
    if meta is not None:
        assert meta == (solver.META.BASE_LR, solver.META.INITIAL_POWER, solver.META.BATCH_SIZE)


def test_methods_are_deltas_of_their_base():
    base = load("cifar10_lt+softmax")
    loss = "MODEL.LONG_TAIL.LOSS"
    weights = f"{loss}.CLASS_WEIGHTS"
    for method, *keys in [
        ("cbs", "SAMPLER", "class_balanced"),
        ("cbw", f"{weights}.NAME", "inverse", f"{weights}.NORMALISE", "classes"),
        ("balanced_softmax", f"{loss}.NAME", "balanced_softmax"),
    ]:
        cfg = load(f"cifar10_lt+{method}", "OUTPUT_DIR", base.OUTPUT_DIR)
        changed = load("cifar10_lt+softmax", *keys)
        assert cfg == changed


def test_the_table_of_configurations_has_a_row_for_each_method_and_no_other():
    table = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE)) == set(METHODS)
    assert set(re.findall(r"^- `(\w+)`: ", table, re.MULTILINE)) == set(SUITES)


def test_only_keys_that_a_classifier_has_are_taken_over_from_the_detector():
    long_tail = default_config().MODEL.LONG_TAIL
    assert "LOSS" in long_tail and "MASK_CLASSIFIER" not in long_tail


def test_misspelt_keys_and_missing_files_are_named():
    with pytest.raises(InputError, match=r"command line: .*IMBALANC; did you mean IMBALANCE\?"):
        load("digits_lt+softmax", "IMBALANC", 10)
    with pytest.raises(InputError, match="nowhere.yaml: there is no such configuration file"):
        load_config("nowhere.yaml")
    with pytest.raises(InputError, match="ZZZ; see balms_det/classification/options.py"):
        load("digits_lt+softmax", "ZZZ", 10)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("DATA.NAME", "mnist", "cifar10, cifar100"),
        ("MODEL.BACKBONE.NAME", "resnet50", "resnet32_cifar"),
        ("SAMPLER", "balanced", "class_balanced"),
        ("IMBALANCE", 0, "1 (balanced) or more"),
        ("SEED", -1, "from 0 to"),
        ("AUGMENT.CROP_PADDING", -1, "0 or more"),
        ("AUGMENT.CUTOUT", -2, "0 or more"),
        ("SOLVER.BATCH_SIZE", 0, "1 or more"),
        ("SOLVER.MAX_ITER", 0, "1 or more"),
        ("SOLVER.WARMUP_ITERS", 500, "less than SOLVER.MAX_ITER"),
        ("SOLVER.BASE_LR", 0.0, "more than 0"),
        ("SOLVER.WARMUP_LR", -0.1, "more than 0"),
        ("SOLVER.META.BASE_LR", 0.0, "more than 0"),
        ("SOLVER.META.TEMPERATURE", 0.0, "more than 0"),
        ("SOLVER.META.BATCH_SIZE", 0, "1 or more"),
        ("SOLVER.META.INITIAL_POWER", -1.0, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.NAME", "softmx", "balanced_softmax"),
        ("MODEL.LONG_TAIL.LOSS.FOCAL.GAMMA", -1.0, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME", "inv", "inverse"),
        ("MODEL.LONG_TAIL.LOSS.MARGIN.START_ITER", -1, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED", True, "False"),
        ("MODEL.LONG_TAIL.CLASSIFIER", "cosin", "linear, cosine"),
        ("MODEL.LONG_TAIL.CLASSIFIER", "lws", "DECOUPLE.ENABLED"),
        ("MODEL.LONG_TAIL.DECOUPLE.ENABLED", True, "MODEL.WEIGHTS"),
        ("SAMPLER", "meta", "DECOUPLE.ENABLED"),
    ],
)
def test_bad_value_is_refused_with_key_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(InputError) as caught:
        load("digits_lt+softmax", key, value)
    message = str(caught.value)
    assert key in message and str(value) in message and allowed in message


def test_the_meta_sampler_is_refused_for_losses_without_a_plain_one():
    with pytest.raises(InputError, match="LOSS.NAME is 'gol'.*softmax or sigmoid"):
        load("digits_lt+balms", "MODEL.LONG_TAIL.LOSS.NAME", "gol")
