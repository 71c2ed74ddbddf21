"""What happens to a training at a certain iteration."""

import logging
from collections.abc import Callable, Sequence

from detectron2.engine import HookBase, SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from balms_det.decouple import freeze_except
from balms_det.modeling.deferred_scalars import put_pending_scalars

logger = logging.getLogger(__name__)


class FreezeLate(HookBase):
    """Freezes all but a few modules from an iteration on: both stages of training in one run."""

    def __init__(
        self,
        start_iter: int,
        train_modules: Sequence[str],
        loop: SimpleTrainer,
        distribute: Callable[[nn.Module], nn.Module],
    ) -> None:
        """
        Args:
            start_iter: the first iteration that trains `train_modules` alone.
            train_modules: as of :func:`balms_det.modeling.freeze_except`.
            loop: whose model is frozen.
            distribute: makes a DistributedDataParallel of a model.
        """
        self._start_iter = start_iter
        self._train_modules = train_modules
        self._loop = loop
        self._distribute = distribute
        self._frozen = False

    def before_step(self) -> None:
        if self._frozen or self.trainer.iter < self._start_iter:
            return
        self._frozen = True
        model = self._loop.model
        is_distributed = isinstance(model, DistributedDataParallel)
        whole = model.module if is_distributed else model
        freeze_except(whole, self._train_modules)
        for parameter in whole.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # The optimizer passes over it: not even weight decay.
        if is_distributed:
            # The old one would wait for gradients that do not come any more.
            self._loop.model = self._distribute(whole)
        trained = ", ".join(self._train_modules)
        logger.info("From iteration %d on, only %s trains", self._start_iter, trained)


class PutPendingScalars(HookBase):
    """Puts the scalars of the last iterations into the storage, before the writers' last writing.

    Others are put in iterations in which the writers write, by
    :func:`balms_det.modeling.deferred_scalars.put_scalar`.
    """

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            put_pending_scalars(self.trainer.storage)
