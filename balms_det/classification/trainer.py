"""Training and testing of one classifier, from its configuration to its results.

Shapes: N images of a batch, C, H, W; K classes; D features.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balms_det.classification.augment import Augmentation
from balms_det.classification.criterion import ClassificationCriterion
from balms_det.classification.data import Batches, Examples, FileBatches, TensorBatches, load_split
from balms_det.classification.evaluate import Evaluation, evaluate
from balms_det.classification.long_tail import class_stats
from balms_det.classification.networks import build_network
from balms_det.classification.sampling import MetaSampler, Sampler, build_sampler
from balms_det.classification.streams import Use, stream, stream_seed
from balms_det.decouple import find_modules, freeze_except, is_within
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

CHECKPOINT, FINAL = "checkpoint.pth", "model_final.pth"
_TEST_BATCH = 1000


class Trainer:
    """One run: ``Trainer(cfg).train()`` and then ``.test()``.

    The state of a run is its iteration, its network with the criterion's running state, its
    optimizer's momenta and, with the Meta Sampler, the rates; random numbers follow from the
    iteration. A resumed run therefore ends where an undisturbed one does.
    """

    def __init__(self, cfg: Any) -> None:
        """
        Args:
            cfg: from :func:`balms_det.classification.config.load_config`.

        Raises:
            InputError: the data, or the first stage's checkpoint, cannot be used.
        """
        self.cfg = cfg
        self.device = torch.device(cfg.DEVICE)
        self.iteration = 0
        self.seconds = 0.0  # of training
        split = load_split(cfg.DATA, cfg.IMBALANCE, cfg.SEED)
        self.train_set, self.test_set = split.train, split.test
        num_classes = self.train_set.num_classes
        # Both stages are to train on the same images; this tells whether they do.
        self._subset = hashlib.sha256(split.indices.tobytes()).hexdigest()[:16]
        self.stats = class_stats(self.train_set.labels, self.train_set.names)

        torch.manual_seed(cfg.SEED)
        self.criterion = ClassificationCriterion(
            cfg.MODEL.LONG_TAIL, self.stats, lambda: self.iteration
        )
        self.network = build_network(cfg, num_classes)
        with torch.no_grad():
            prior = cfg.MODEL.LONG_TAIL.LOSS.PRIOR_PROB
            self.network.classifier.bias.copy_(self.criterion.initial_bias(prior))
        decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
        if decouple.ENABLED:
            self._load_first_stage(cfg.MODEL.WEIGHTS, decouple.REINIT)
            freeze_except(self.network, decouple.TRAIN_MODULES)
        self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion.to(self.device)
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            nesterov=cfg.SOLVER.NESTEROV,
            fused=True,  # one pass over the parameters instead of three
        )
        self.sampler = build_sampler(cfg, self.train_set.labels, num_classes)
        self._augment = Augmentation(
            **{key.lower(): value for key, value in cfg.AUGMENT.items()}  # the same names
        )

    def train(self) -> None:
        """Train to SOLVER.MAX_ITER, and save the last network."""
        solver = self.cfg.SOLVER
        self.network.train()
        batches = self._training_batches()
        started = time.perf_counter() - self.seconds
        while self.iteration < solver.MAX_ITER:
            images, labels = next(batches)
            loss = self._step(images, labels)
            self.iteration += 1
            self.seconds = time.perf_counter() - started
            if self.iteration % solver.LOG_PERIOD == 0 or self.iteration == solver.MAX_ITER:
                # Reading the loss waits for a GPU, so that it is done once in a while only.
                value = loss.item()
                logger.info("iteration %d: loss %.4f, %.0f s", self.iteration, value, self.seconds)
                if not math.isfinite(value):
                    raise InputError(
                        f"the loss is {value} at iteration {self.iteration}; set SOLVER.BASE_LR to "
                        f"less than {self.cfg.SOLVER.BASE_LR}"
                    )
            if self.iteration % solver.CHECKPOINT_PERIOD == 0:
                self.save(CHECKPOINT)
        self.save(FINAL)
        Path(self.cfg.OUTPUT_DIR, CHECKPOINT).unlink(missing_ok=True)

    @torch.no_grad()
    def test(self) -> Evaluation:
        """Return results of the network as it is on the test set."""
        self.network.eval()
        batches = self._batches(self.test_set)
        indices = torch.split(torch.arange(len(self.test_set.labels)), _TEST_BATCH)
        logits = torch.cat([self.network(images) for images, _ in batches(indices)])
        probs = self.criterion.probs(logits).cpu()
        labels = torch.from_numpy(self.test_set.labels)
        return evaluate(logits.argmax(1).cpu(), probs, labels, self.stats.image_counts)

    def resume(self) -> bool:
        """Continue from the checkpoint in OUTPUT_DIR, if any, and return whether the run is
        finished.

        Raises:
            InputError: the checkpoint is of another run.
        """
        for name in (FINAL, CHECKPOINT):
            path = Path(self.cfg.OUTPUT_DIR, name)
            if path.is_file():
                self._restore(self._load(path), path)
                break
        return bool(self.iteration >= self.cfg.SOLVER.MAX_ITER)

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        try:
            self.network.load_state_dict(state["model"])
            self.criterion.load_state_dict(state["criterion"])
            self.optimizer.load_state_dict(state["optimizer"])
            if isinstance(self.sampler, MetaSampler):
                self.sampler.load_state_dict(state["sampler"])
                self.sampler.optimizer.load_state_dict(state["sampler_optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{path}: the checkpoint is of another configuration; delete it, or give "
                "OUTPUT_DIR another path"
            ) from error
        self.iteration, self.seconds = state["iteration"], state["seconds"]

    def rates(self) -> list[float] | None:
        """Return the Meta Sampler's (K,) rates in (0, 1); None for other samplers."""
        if not isinstance(self.sampler, MetaSampler):
            return None
        rates: list[float] = self.sampler.rate_logits.detach().sigmoid().tolist()
        return rates

    def save(self, name: str) -> None:
        """Write a checkpoint to OUTPUT_DIR."""
        state = {
            "model": self.network.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "subset": self._subset,
        }
        if isinstance(self.sampler, MetaSampler):
            state["sampler"] = self.sampler.state_dict()
            state["sampler_optimizer"] = self.sampler.optimizer.state_dict()
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        with atomic_file(Path(self.cfg.OUTPUT_DIR, name)) as file:
            torch.save(state, file)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step of SGD, and return the loss, still on the device."""
        # For losses that draw at random themselves.
        torch.manual_seed(stream_seed(self.cfg.SEED, Use.STEP, self.iteration))
        (group,) = self.optimizer.param_groups
        group["lr"] = learning_rate(self.cfg.SOLVER, self.iteration)
        features = self.network.features(images)
        logits = self.network.classifier(features)
        logits.retain_grad()
        loss: Tensor = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        if isinstance(self.sampler, MetaSampler):
            with torch.no_grad():
                meta_images, meta_labels = next(self._meta_batches)
                meta_features = self.network.features(meta_images)
            self.sampler.update(
                self.network.classifier,
                group,
                (features, logits.grad, labels),
                (meta_features, meta_labels),
                self.criterion.plain_loss,
            )
        return loss.detach()

    def _training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return augmented images and labels, from the current iteration on."""
        batches = self._batches(self.train_set, self.cfg.SEED)
        if isinstance(self.sampler, MetaSampler):
            meta_set = self.sampler.meta_set
            self._meta_batches = self._augmented(batches, meta_set, Use.META_AUGMENTATION)
        return self._augmented(batches, self.sampler, Use.AUGMENTATION)

    def _augmented(
        self, batches: Batches, sampler: Sampler, use: Use
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the examples that `sampler` draws, augmented."""
        start = self.iteration
        draws = (sampler.draw(i) for i in range(start, self.cfg.SOLVER.MAX_ITER))
        for i, (images, labels) in enumerate(batches(draws, start), start):
            yield self._augment(images, stream(self.cfg.SEED, use, i)), labels

    def _batches(self, examples: Examples, seed: int | None = None) -> Batches:
        if examples.read is not None:
            return TensorBatches(examples, self.device)
        return FileBatches(examples, self.device, num_workers=self.cfg.DATA.NUM_WORKERS, seed=seed)

    def _load_first_stage(self, path: str, reinit: list[str]) -> None:
        """Return all parameters but those of the modules `reinit`, and of scales that are new."""
        find_modules(self.network, reinit, "MODEL.LONG_TAIL.DECOUPLE.REINIT")
        if not os.path.isfile(path):
            raise InputError(
                f"MODEL.WEIGHTS {path}: there is no checkpoint of a first stage; train it first, "
                "with the same IMBALANCE and SEED"
            )
        state = self._load(Path(path))["model"]
        kept = {name: value for name, value in state.items() if not is_within(name, reinit)}
        new = [*reinit, "classifier.scale"]
        ours = {n: v.shape for n, v in self.network.state_dict().items() if not is_within(n, new)}
        if ours != {name: value.shape for name, value in kept.items()}:
            raise InputError(
                f"MODEL.WEIGHTS {path}: the checkpoint is of another network than "
                f"{self.cfg.MODEL.BACKBONE.NAME!r}; set MODEL.BACKBONE.NAME to the first stage's"
            )
        self.network.load_state_dict(kept, strict=False)

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            subset = state["subset"]
        except Exception as error:  # Unpickling a file of another kind can raise anything.
            raise InputError(
                f"{path}: this is not a checkpoint of `balms-det classify`; delete it, or give "
                "MODEL.WEIGHTS or OUTPUT_DIR another path"
            ) from error
        if subset != self._subset:
            raise InputError(
                f"{path}: the checkpoint was trained on other images than this run would be; both "
                "need the same DATA, IMBALANCE and SEED"
            )
        return state


def learning_rate(solver: Any, iteration: int) -> float:
    """Return the learning rate: a line from WARMUP_LR to BASE_LR, then a cosine to zero (release).

    Args:
        solver: the SOLVER node.
        iteration: counted from 0.
    """
    if iteration < solver.WARMUP_ITERS:
        part = iteration / solver.WARMUP_ITERS
        return float(solver.WARMUP_LR + (solver.BASE_LR - solver.WARMUP_LR) * part)
    part = (iteration - solver.WARMUP_ITERS) / (solver.MAX_ITER - solver.WARMUP_ITERS)
    return float(solver.BASE_LR * (1 + math.cos(math.pi * part)) / 2)
