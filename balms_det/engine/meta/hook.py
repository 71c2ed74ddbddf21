"""Learning the class rates of the Meta Sampler and the Meta Reweighter while training.

The SGD step that Meta Sampler and Reweighter look ahead to is the one that the trainer takes.
So the training batch needs no second forward or backward pass: what :mod:`balms_det.bilevel` asks
for is recorded as it comes by, and after the step the classifier is at theta'. The rates that this
moves count from the next batch on; in the authors' code those of the Reweighter count for the same
batch, which is why it goes through the network twice.

Where the features of a RoI reach beyond the classifier that is trained (joint training), the
derivative is through the classifier alone, as in the authors' code for classification.

Shapes as in :mod:`balms_det.bilevel`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from detectron2.utils import comm
from matplotlib.figure import Figure
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.bilevel import head_gradient, log_weight_gradients, loss_and_logit_gradients
from balms_det.engine.meta.meta_sets import MetaSet
from balms_det.engine.meta.rates import ReweighterRates, SamplerRates, mean_over_processes
from balms_det.engine.meta.recorder import Recorder
from balms_det.modeling.deferred_scalars import put_scalar
from balms_det.runtime.figures import save_figure

# Iterations between two histograms of the rates, as between the trainer's other records.
_PERIOD = 20


class MetaLearning(HookBase):
    """Moves the rates after every step of the trainer, and keeps them in its checkpoints.

    The gradients that make up a step of the rates are averaged over the processes, so that the
    rates are the same in all of them.
    """

    def __init__(
        self,
        recorder: Recorder,
        rates: SamplerRates | ReweighterRates,
        meta_set: MetaSet,
        meta_losses: list[Callable[[Tensor, Tensor], Tensor]],
        *,
        lr: float,
        class_stats: ClassStats,
        output_dir: str,
    ) -> None:
        """
        Args:
            recorder: of the model that is trained.
            rates: what is learned.
            meta_set: where the meta batches are from.
            meta_losses: per predictor, ``loss(logits, gt_classes)``, a mean over rows.
            lr: of Adam.
            class_stats: for the plot.
            output_dir: where the plot goes after training.
        """
        self._recorder = recorder
        self._rates = rates
        self._meta_set = meta_set
        self._meta_losses = meta_losses
        self._class_stats = class_stats
        self._output_dir = output_dir
        self._optimizer = torch.optim.Adam([rates.rate_logits], lr=lr)

    @torch.no_grad()
    def after_step(self) -> None:
        training = self._recorder.records, self._recorder.dataset_indices
        meta_batches = self._meta_set.batches(self._recorder.records)
        self._recorder.records, self._recorder.dataset_indices = training
        rows, losses = [], []
        for predictor, record, meta_batch, meta_loss in zip(
            self._recorder.predictors,
            self._recorder.records,
            meta_batches,
            self._meta_losses,
            strict=True,
        ):
            features, gt_classes = (tensor.detach() for tensor in meta_batch)
            features = features.float()
            layer = predictor.cls_score
            logits = F.linear(features, layer.weight, layer.bias)
            loss, errors = loss_and_logit_gradients(
                lambda z, y=gt_classes, f=meta_loss: f(z, y), logits
            )
            weight, bias = head_gradient(features, errors)
            meta_gradient = (
                mean_over_processes(weight, weight.device),
                mean_over_processes(bias, bias.device),
            )
            rows.append(
                log_weight_gradients(
                    record.features.float(),
                    record.row_gradients,
                    meta_gradient,
                    **self._step_of(layer.weight),
                )
            )
            losses.append(loss)
        gradient = self._rates.gradient(self._recorder, rows)
        self._rates.rate_logits.grad = mean_over_processes(gradient, rows[0].device)
        self._optimizer.step()
        self._log(sum(losses))

    def _step_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the SGD step as arguments of :func:`balms_det.bilevel.log_weight_gradients`."""
        for group in self.trainer.optimizer.param_groups:
            if any(parameter is other for other in group["params"]):
                return {key: group[key] for key in ("lr", "momentum", "nesterov")}
        raise AssertionError("the classifier is not trained")

    def _log(self, loss: Tensor) -> None:
        rates = self.rates()
        put_scalar("meta/loss", loss)
        for name in ("min", "mean", "max"):
            put_scalar(f"meta/rate_{name}", getattr(rates, name)())
        if (self.trainer.iter + 1) % _PERIOD == 0:
            self.trainer.storage.put_histogram("meta/rates", rates.cpu())

    def rates(self) -> Tensor:
        """Return (K,) sigma(psi)."""
        return self._rates.rate_logits.detach().sigmoid()

    def after_train(self) -> None:
        if comm.is_main_process() and self.trainer.iter >= self.trainer.max_iter:
            path = os.path.join(self._output_dir, "meta_rates.png")
            plot_rates(self.rates().cpu(), self._class_stats, path)

    def state_dict(self) -> dict[str, Any]:
        state = {
            "rate_logits": self._rates.rate_logits.detach(),
            "optimizer": self._optimizer.state_dict(),
            "meta_set": self._meta_set.state_dict(),
        }
        if isinstance(self._rates, SamplerRates):
            state["sampler"] = self._rates.sampler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._rates.rate_logits.copy_(state["rate_logits"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._meta_set.load_state_dict(state["meta_set"])
        if isinstance(self._rates, SamplerRates):
            self._rates.sampler.load_state_dict(state["sampler"])


def plot_rates(rates: Tensor, stats: ClassStats, path: str) -> None:
    """Draw the rate of each class against the number of its images.

    Args:
        rates: (K,) in (0, 1).
        stats: of the K classes.
        path: of the figure.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(stats.image_counts, rates.numpy(), ".", markersize=4)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="training images with the class", ylabel="learned rate", ylim=(0, 1))
    save_figure(figure, path)
