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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from balms_det.annotations.class_stats import ClassStats
from balms_det.bilevel import (
    class_means,
    head_gradient,
    log_weight_gradients,
    loss_and_logit_gradients,
    reweighter_rate_gradient,
    sampler_rate_gradient,
)
from balms_det.data import MetaTrainingSampler, build_train_loader, meta_sampler_of
from balms_det.losses.criterion import Criterion
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.figures import save_figure

# Iterations between two histograms of the rates, as between the trainer's other records.
_PERIOD = 20


@dataclass(frozen=True)
class HeadRecord:
    """What a classifier saw in one forward pass.

    Attributes:
        features: (R, D).
        gt_classes: (R,) in [0, K].
        image_of_row: (R,) which image of the batch each row is from.
        row_gradients: (R, C) of the training loss; None before, or without, its backward pass.
    """

    features: Tensor
    gt_classes: Tensor
    image_of_row: Tensor
    row_gradients: Tensor | None = None


class Recorder:
    """Listens to the classifiers of a detector through PyTorch's hooks, changing nothing.

    Attributes:
        predictors: of the box head, one for each stage of a cascade.
        dataset_indices: of the images of the last batch, where its loader gives them.
        records: of the last forward pass in training mode, one for each predictor.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a GeneralizedRCNN with this package's ROI heads, not its distributed wrapper.
        """
        heads = model.roi_heads
        several = isinstance(heads.box_predictor, nn.ModuleList)
        self.predictors: list[LongTailPredictor] = (
            list(heads.box_predictor) if several else [heads.box_predictor]
        )
        self.dataset_indices: list[int | None] = []
        self.records: list[HeadRecord] = []
        self._image_of_row = torch.zeros(0, dtype=torch.int64)
        self._features = torch.zeros(0)
        model.register_forward_pre_hook(self._begin)
        heads.box_pooler.register_forward_pre_hook(self._see_boxes)
        for predictor in self.predictors:
            predictor.cls_score.register_forward_hook(self._see_features)
            predictor.criterion.register_forward_pre_hook(self._see_classes)

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.dataset_indices = [image.get("dataset_index") for image in args[0]]
        self.records = []
        # Cached features come in the place of images, and no boxes are pooled.
        self._count_rows([image["features"] for image in args[0] if "features" in image])

    def _see_boxes(self, pooler: nn.Module, args: tuple[Any, ...]) -> None:
        self._count_rows(args[1])

    def _count_rows(self, per_image: Sequence[Sized]) -> None:
        counts = torch.tensor([len(rows) for rows in per_image], dtype=torch.int64)
        self._image_of_row = torch.arange(len(counts)).repeat_interleave(counts)

    def _see_features(self, layer: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
        self._features = args[0].detach()

    def _see_classes(self, criterion: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        logits, gt_classes = args
        image_of_row = self._image_of_row.to(gt_classes.device)
        self.records.append(HeadRecord(self._features, gt_classes, image_of_row))
        if logits.requires_grad:
            position = len(self.records) - 1

            def see_gradient(gradient: Tensor) -> None:
                self.records[position] = replace(self.records[position], row_gradients=gradient)

            logits.register_hook(see_gradient)


# One class-balanced batch of features and classes, (M, D) and (M,).
MetaBatch = tuple[Tensor, Tensor]


class MetaSet(Protocol):
    """Where the meta batches are from."""

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        """One for each of the training batch's records."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FeatureBank:
    """Meta batches from the RoIs of past training batches, for features that training leaves alone.

    Every class that has occurred is as likely as any other, and its last RoIs are all equally so.
    A meta batch has as many foreground and background rows as the training batch; the background is
    the previous batch's. Nothing of the batch at hand is in it, for a RoI would vouch for itself.
    """

    def __init__(self, num_classes: int, per_class: int, seed: int) -> None:
        """
        Args:
            num_classes: K.
            per_class: RoIs that are kept of each class.
            seed: of the draws.
        """
        self._num_classes = num_classes
        self._per_class = per_class
        self._generator = torch.Generator().manual_seed(seed)
        # Per predictor: (K, S, D), (K,) ever kept, and (M, D).
        self._foreground: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._background: list[Tensor] = []

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        if not self._foreground:
            shape = self._num_classes, self._per_class
            self._foreground = [r.features.new_zeros(*shape, r.features.shape[1]) for r in records]
            self._seen = [torch.zeros(self._num_classes, dtype=torch.int64) for _ in records]
            self._background = [r.features[:0] for r in records]
        # A checkpoint's are on the CPU.
        device = records[0].features.device
        self._foreground = [features.to(device) for features in self._foreground]
        self._background = [features.to(device) for features in self._background]
        drawn = [self._draw(stage, record) for stage, record in enumerate(records)]
        for stage, record in enumerate(records):
            self._keep(stage, record)
        return drawn

    def _draw(self, stage: int, record: HeadRecord) -> MetaBatch:
        seen, foreground = self._seen[stage], self._foreground[stage]
        background = self._background[stage]
        known = seen.nonzero()[:, 0]
        number = int((record.gt_classes < self._num_classes).sum()) if len(known) else 0
        classes = known[self._random(number, len(known))]
        filled = seen[classes].clamp(max=self._per_class)
        slots = (torch.rand(number, generator=self._generator, dtype=torch.float64) * filled).long()
        features = foreground[classes.to(foreground.device), slots.to(foreground.device)]
        gt_classes = F.pad(classes, (0, len(background)), value=self._num_classes)
        return torch.cat([features, background]), gt_classes.to(features.device)

    def _random(self, number: int, high: int) -> Tensor:
        return torch.randint(max(high, 1), (number,), generator=self._generator)

    def _keep(self, stage: int, record: HeadRecord) -> None:
        is_foreground = record.gt_classes < self._num_classes
        self._background[stage] = record.features[~is_foreground]
        rows = is_foreground.nonzero()[:, 0]
        classes = record.gt_classes[rows].cpu()
        # The how-manieth of its class each row is: rings of the last S rows of each.
        order = classes.argsort(stable=True)
        counts = torch.bincount(classes, minlength=self._num_classes)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(order)) - starts[classes[order]]
        # Of more rows than a ring holds, the last ones.
        last = rank >= counts[classes[order]] - self._per_class
        order, rank = order[last], rank[last]
        slots = (self._seen[stage][classes[order]] + rank) % self._per_class
        bank = self._foreground[stage]
        bank[classes[order].to(bank.device), slots.to(bank.device)] = record.features[
            rows[order.to(rows.device)]
        ]
        self._seen[stage] += counts

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "foreground": self._foreground,
            "seen": self._seen,
            "background": self._background,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._seen = list(state["seen"])
        self._foreground = list(state["foreground"])
        self._background = list(state["background"])


class ForwardPass:
    """Meta batches from a forward pass of images that are drawn class-balanced."""

    def __init__(self, model: nn.Module, recorder: Recorder, loader: Iterable[Any]) -> None:
        """
        Args:
            model: whose features are asked for; none of its parameters or statistics change.
            recorder: of that model.
            loader: endless batches of images.
        """
        self._model = model
        self._recorder = recorder
        self._loader = loader
        self._images: Iterator[Any] | None = None

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        if self._images is None:
            self._images = iter(self._loader)
        images = next(self._images)
        with _undisturbed(self._model), torch.no_grad(), EventStorage():
            self._model(images)
        return [(record.features, record.gt_classes) for record in self._recorder.records]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a model in training mode move neither batch statistics nor the state of a loss."""
    modules = [m for m in model.modules() if isinstance(m, _BatchNorm | Criterion) and m.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


class SamplerRates:
    """The rates of the Meta Sampler: how a batch's gradients become a gradient of them."""

    def __init__(self, sampler: MetaTrainingSampler, temperature: float) -> None:
        self.sampler = sampler
        self.rate_logits = sampler.rate_logits
        self._temperature = temperature

    def gradient(self, recorder: Recorder, rows: list[Tensor]) -> Tensor:
        """(K,) dM/dpsi, its mean over the processes still to be taken.

        Args:
            recorder: of the training batch.
            rows: per predictor, (R,) dM/dlog w.
        """
        draws = [self.sampler.take(index) for index in recorder.dataset_indices]
        per_image = torch.zeros(len(draws), device=rows[0].device)
        for record, gradients in zip(recorder.records, rows, strict=True):
            per_image.index_add_(0, record.image_of_row, gradients)
        per_image = per_image.to(self.rate_logits)
        classes = torch.tensor([draw.drawn_class for draw in draws])
        totals = per_image.new_zeros(2, len(self.rate_logits))
        totals.index_add_(1, classes, torch.stack([per_image, torch.ones_like(per_image)]))
        sums, counts = _mean_over_processes(totals, rows[0].device)
        relaxed = torch.stack([draw.relaxed for draw in draws])
        return sampler_rate_gradient(
            class_means(sums, counts), relaxed, self.rate_logits, temperature=self._temperature
        )


class ReweighterRates:
    """The rates of the Meta Reweighter, which all stages of a cascade share."""

    def __init__(self, predictors: list[LongTailPredictor]) -> None:
        weights = [predictor.criterion.class_weights for predictor in predictors]
        self.rate_logits = weights[0].rate_logits
        for others in weights[1:]:
            others.rate_logits = self.rate_logits

    def gradient(self, recorder: Recorder, rows: list[Tensor]) -> Tensor:
        """As of :class:`SamplerRates`."""
        return sum(
            reweighter_rate_gradient(gradients, record.gt_classes, self.rate_logits)
            for record, gradients in zip(recorder.records, rows, strict=True)
        )


def _mean_over_processes(tensor: Tensor, device: torch.device) -> Tensor:
    """The mean, computed on `device` and the same bits in every process."""
    if comm.get_world_size() == 1:
        return tensor
    total = tensor.to(device)
    dist.all_reduce(total)
    return (total / comm.get_world_size()).to(tensor)


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
                _mean_over_processes(weight, weight.device),
                _mean_over_processes(bias, bias.device),
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
        self._rates.rate_logits.grad = _mean_over_processes(gradient, rows[0].device)
        self._optimizer.step()
        self._log(sum(losses))

    def _step_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What :func:`balms_det.bilevel.log_weight_gradients` has to know of the SGD step."""
        for group in self.trainer.optimizer.param_groups:
            if any(parameter is other for other in group["params"]):
                return {key: group[key] for key in ("lr", "momentum", "nesterov")}
        raise AssertionError("the classifier is not trained")

    def _log(self, loss: Tensor) -> None:
        storage, rates = self.trainer.storage, self.rates()
        storage.put_scalar("meta/loss", loss.item())
        for name in ("min", "mean", "max"):
            storage.put_scalar(f"meta/rate_{name}", getattr(rates, name)().item())
        if (self.trainer.iter + 1) % _PERIOD == 0:
            storage.put_histogram("meta/rates", rates.cpu())

    def rates(self) -> Tensor:
        """(K,) sigma(psi)."""
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
        path: of the picture.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(stats.image_counts, rates.numpy(), ".", markersize=4)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="training images with the class", ylabel="learned rate", ylim=(0, 1))
    save_figure(figure, path)


def build_meta_learning(cfg: Any, model: nn.Module, train_loader: Any) -> MetaLearning | None:
    """The hook that learns what the configuration says is learned, or None.

    Args:
        cfg: checked by :func:`balms_det.engine.validate_config`.
        model: that is trained, not its distributed wrapper.
        train_loader: of the training batches.
    """
    sampler = meta_sampler_of(train_loader)
    if sampler is None and cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME != "learned":
        return None
    meta = cfg.SOLVER.META
    recorder = Recorder(model)
    rates = (
        ReweighterRates(recorder.predictors)
        if sampler is None
        else SamplerRates(sampler, meta.TEMPERATURE)
    )
    meta_set: MetaSet
    if features_are_frozen(model):
        # Each process has features, and draws, of its own.
        seed = max(cfg.SEED, 0) + comm.get_rank()
        meta_set = FeatureBank(cfg.MODEL.ROI_HEADS.NUM_CLASSES, meta.FEATURES_PER_CLASS, seed)
    else:
        meta_set = ForwardPass(model, recorder, _class_balanced_loader(cfg))
    plain = PLAIN_LOSSES[LOSSES[cfg.MODEL.LONG_TAIL.LOSS.NAME].link]
    return MetaLearning(
        recorder,
        rates,
        meta_set,
        [plain if meta.LOSS == "plain" else p.criterion.unweighted for p in recorder.predictors],
        lr=meta.BASE_LR,
        class_stats=ClassStats.load(cfg.MODEL.LONG_TAIL.STATS_FILE),
        output_dir=cfg.OUTPUT_DIR,
    )


def features_are_frozen(model: nn.Module) -> bool:
    """Whether training changes nothing that the classifier's features depend on."""
    before = (model.backbone, model.proposal_generator, model.roi_heads.box_head)
    return not any(p.requires_grad for part in before for p in part.parameters())


def _class_balanced_loader(cfg: Any) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassBalancedTrainingSampler"
    if cfg.SEED >= 0:
        cfg.SEED += 1  # or it would follow a class-balanced training sampler image by image
    return build_train_loader(cfg)
