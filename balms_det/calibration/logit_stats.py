"""Mean and deviation of each class's logit over training proposals: collected, saved and loaded."""

import os
from dataclasses import dataclass

import orjson
import torch
from torch import Tensor

from balms_det.annotations.file import read_json
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

_VERSION_KEY = "logit_stats_version"
_VERSION = 1
_REMEDY = "collect them again with `balms-det logit-stats`"


@dataclass(frozen=True, eq=False)
class LogitStats:
    """The logits of a detector's foreground classes over the proposals that it trains on.

    Attributes:
        means: (K,) float64.
        deviations: (K,) float64, positive.
        num_rows: proposals that they are of.
    """

    means: Tensor
    deviations: Tensor
    num_rows: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to `path` as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        content = {
            _VERSION_KEY: _VERSION,
            "num_rows": self.num_rows,
            "means": self.means.tolist(),
            "deviations": self.deviations.tolist(),
        }
        try:
            with atomic_file(path) as file:
                file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise InputError(
                f"{path}: the logit statistics cannot be written ({error.strerror}); check that "
                "the folder exists and has room"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LogitStats":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: `path` cannot be read or is something else.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get(_VERSION_KEY) != _VERSION:
            raise InputError(f"{path}: these are no logit statistics; {_REMEDY}")
        try:
            means, deviations = (
                torch.tensor(content[key], dtype=torch.float64) for key in ("means", "deviations")
            )
            num_rows = int(content["num_rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: the logit statistics are damaged; {_REMEDY}") from error
        if (
            means.dim() != 1
            or means.shape != deviations.shape
            or not (means.isfinite() & (deviations > 0) & deviations.isfinite()).all()
        ):
            raise InputError(f"{path}: the logit statistics are damaged; {_REMEDY}")
        return cls(means, deviations, num_rows)


class LogitMoments:
    """Adds up batches of logits into their mean and deviation, in double precision."""

    def __init__(self, num_classes: int) -> None:
        self._num_rows = 0
        self._mean = torch.zeros(num_classes, dtype=torch.float64)
        self._squares = torch.zeros(num_classes, dtype=torch.float64)  # of deviations, summed

    def add(self, logits: Tensor) -> None:
        """Add (R, K) logits."""
        logits = logits.detach().to(self._mean)
        number = len(logits)
        if number == 0:
            return
        mean = logits.mean(dim=0)
        total = self._num_rows + number
        gap = mean - self._mean
        # The pairwise update of a mean and a sum of squares, which loses no digits.
        self._squares += ((logits - mean) ** 2).sum(dim=0)
        self._squares += gap**2 * (self._num_rows * number / total)
        self._mean = self._mean + gap * (number / total)
        self._num_rows = total

    def stats(self) -> LogitStats:
        """Return the statistics; the variance is the unbiased one, as batch norm's.

        Raises:
            InputError: fewer than two rows were added.
        """
        if self._num_rows < 2:
            raise InputError(
                f"the training set gave {self._num_rows} proposals, and logit statistics need two "
                "or more; check DATASETS.TRAIN"
            )
        variance = self._squares / (self._num_rows - 1)
        # The authors' least variance, for a class whose logit is constant.
        return LogitStats(self._mean, variance.clamp(min=1e-11).sqrt(), self._num_rows)
