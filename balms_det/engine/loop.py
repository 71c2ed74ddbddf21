"""Detectron2's training loops, with a sentence where a training diverges."""

from detectron2.engine import AMPTrainer, SimpleTrainer

from balms_det.runtime.errors import InputError


class _NamesDivergence:
    """A loop whose loss that is infinite or not a number ends the training with one sentence."""

    def run_step(self) -> None:
        """Train one iteration.

        Raises:
            InputError: the loss is infinite or not a number.
        """
        try:
            super().run_step()  # type: ignore[misc]
        except FloatingPointError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the training diverged ({reason}); lower SOLVER.BASE_LR, lengthen "
                "SOLVER.WARMUP_ITERS, or check boxes and masks with `balms-det check`; earlier "
                "checkpoints are kept"
            ) from error


class SimpleLoop(_NamesDivergence, SimpleTrainer):
    """In the precision of the model."""


class AMPLoop(_NamesDivergence, AMPTrainer):
    """In mixed precision."""
