"""The methods that the benchmark compares.

A method is a configuration file of ``configs/``, whose lines are put on top of the suite's, so that
what is measured here is what is shipped for LVIS.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import yaml

from balms_det.config import config_file

LONG_TAIL = "MODEL.LONG_TAIL"
_MARGIN = f"{LONG_TAIL}.LOSS.MARGIN"
_DECOUPLE = f"{LONG_TAIL}.DECOUPLE"
# The suite, not the method, sets the model and the schedule.
_OF_THE_SUITE = ("VERSION", "_BASE_", "MODEL.WEIGHTS", "MODEL.RESNETS", "SOLVER")


class Share(float):
    """A value that is given as a share of the schedule's iterations."""


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: on the command line and in file names.
        title: in tables.
        config: METHOD of ``configs/methods/METHOD.yaml``.
        opts: further configuration keys and values.
        stage: "joint" trains the whole detector, "second" its classifier on the frozen features of
            `base`, "test" nothing; "suite" is joint in the suites that list the method, and else a
            second stage with a classifier of its own.
        base: the method whose detector a second stage or a test starts from; "" for the suite's.
        cached: whether a second stage trains on cached features.
        sampled_counts: whether class counts are those that the sampler is expected to show, and not
            the data set's own.
        data: changes of the suite's data set.
    """

    name: str
    title: str
    config: str
    opts: Mapping[str, Any] = field(default_factory=dict)
    stage: Literal["suite", "joint", "second", "test"] = "suite"
    base: str = ""
    cached: bool = True
    sampled_counts: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> dict[str, Any]:
        """Configuration keys and values, without those that are the suite's to say."""
        return {**_lines_of(self.config), **self.opts}


@lru_cache
def _lines_of(config: str) -> Mapping[str, Any]:
    with open(config_file(f"methods/{config}.yaml"), encoding="utf-8") as file:
        content = yaml.safe_load(file)
    return {
        key: value
        for key, value in _flat(content)
        if not any(f"{key}.".startswith(f"{other}.") for other in _OF_THE_SUITE)
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# The learned rates' derivative is through a plain SGD step, in single precision.
_SGD = {
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.AMP.ENABLED": False,
}
_PLAIN_SAMPLING = {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"}

METHODS = {
    method.name: method
    for method in (
        Method("softmax", "softmax", "rfs", _PLAIN_SAMPLING),
        Method("sigmoid", "sigmoid", "sigmoid", _PLAIN_SAMPLING),
        Method("rfs", "softmax, RFS", "rfs"),
        Method("sigmoid_rfs", "sigmoid, RFS", "sigmoid"),
        Method("crt", "cRT", "crt", stage="second"),
        Method("lws", "LWS", "lws", stage="second"),
        Method("norcal", "NorCal", "norcal", stage="test"),
        Method("softmax_norcal", "NorCal without RFS", "norcal", stage="test", base="softmax"),
        Method("eql", "Equalization Loss", "eql"),
        Method("eqlv2", "Equalization Loss v2", "eqlv2"),
        Method("seesaw", "Seesaw", "seesaw"),
        Method("fed", "federated loss", "fed"),
        Method("balsoftmax", "Balanced Softmax", "balsoftmax"),
        Method("balsig", "Balanced Sigmoid", "balsig"),
        Method(
            "decoupled_balsoftmax",
            "Balanced Softmax, second stage",
            "decoupled_balsoftmax",
            stage="second",
        ),
        Method(
            "decoupled_balsig",
            "Balanced Sigmoid, second stage",
            "decoupled_balsig",
            stage="second",
        ),
        Method("balms", "BALMS (Meta Sampler)", "balms", _SGD, stage="second"),
    )
}
