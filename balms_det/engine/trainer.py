"""Detectron2's trainer with this package's data, optimizer, checkpoints and evaluation."""

import functools
import logging
import os
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, defaults
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import (
    build_test_loader,
    build_train_loader,
    load_train_dataset,
    meta_sampler_of,
)
from balms_det.decouple import find_modules, freeze_except
from balms_det.engine.checkpoint import LongTailCheckpointer
from balms_det.engine.feature_cache import build_feature_loader, cached_features
from balms_det.engine.hooks import FreezeLate
from balms_det.engine.meta import build_meta_learning
from balms_det.evaluation import LVISEvaluator
from balms_det.modeling import prepared_for_inference, speed_up_training, train_on_features

logger = logging.getLogger(__name__)


class LongTailTrainer(DefaultTrainer):
    """Trains, evaluates and checkpoints what the configuration describes."""

    def __init__(self, cfg: Any) -> None:
        with self._ddp_context(cfg):
            super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer has just made a checkpointer of its own; the hooks take the one they find.
        self.checkpointer = build_checkpointer(
            self.cfg, self._trainer.model, trainer=weakref.proxy(self)
        )
        model = self._trainer.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        # First, for it reads the step's learning rate before the schedule moves it, and what it
        # learns belongs to the same iteration's checkpoint.
        meta_learning = build_meta_learning(self.cfg, model, self._trainer.data_loader)
        hooks = ([meta_learning] if meta_learning else []) + super().build_hooks()
        decouple = self.cfg.MODEL.LONG_TAIL.DECOUPLE
        if decouple.ENABLED and decouple.START_ITER > 0:
            hooks.insert(
                0, FreezeLate(decouple.START_ITER, decouple.TRAIN_MODULES, self._distributed)
            )
        return hooks

    def _distributed(self, model: torch.nn.Module) -> torch.nn.Module:
        """As DefaultTrainer distributes a model."""
        with self._ddp_context(self.cfg):
            distributed: torch.nn.Module = defaults.create_ddp_model(model, broadcast_buffers=False)
        return distributed

    @staticmethod
    def _ddp_context(cfg: Any) -> AbstractContextManager[Any]:
        return _ddp_on_cpu() if cfg.MODEL.DEVICE == "cpu" else nullcontext()

    @classmethod
    def build_model(cls, cfg: Any) -> torch.nn.Module:
        """The model, frozen where MODEL.LONG_TAIL.DECOUPLE says so, and as FAST_TRAINING says."""
        model = super().build_model(cfg)
        if cfg.MODEL.LONG_TAIL.FAST_TRAINING:
            speed_up_training(model)
        decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
        if decouple.ENABLED:
            for key in ("TRAIN_MODULES", "REINIT"):
                find_modules(model, decouple[key], f"MODEL.LONG_TAIL.DECOUPLE.{key}")
        if decouple.ENABLED and decouple.START_ITER == 0:
            freeze_except(model, decouple.TRAIN_MODULES)
            trained = [name for name, p in model.named_parameters() if p.requires_grad]
            logger.info("Only these parameters train: %s", ", ".join(trained))
        return model

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; a second stage starts from a first one's checkpoint."""
        decouple = self.cfg.MODEL.LONG_TAIL.DECOUPLE
        starts_frozen = decouple.ENABLED and decouple.START_ITER == 0
        if starts_frozen and not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.load_first_stage(self.cfg.MODEL.WEIGHTS, reinit=decouple.REINIT)
        else:
            super().resume_or_load(resume)
        if decouple.ENABLED and decouple.FEATURE_CACHE:
            self._train_on_cached_features()

    def _train_on_cached_features(self) -> None:
        model = getattr(self._trainer.model, "module", self._trainer.model)
        dataset = load_train_dataset(self.cfg)
        cache = cached_features(self.cfg, model, dataset)
        sampler = meta_sampler_of(self._trainer.data_loader)
        self._trainer.reset_data_loader(
            lambda: build_feature_loader(self.cfg, dataset, cache, sampler)
        )
        train_on_features(model)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        # Fused: one pass over the parameters instead of a dozen.
        return adamw(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True
        )

    @classmethod
    def build_train_loader(cls, cfg: Any) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: Any, model: torch.nn.Module, evaluators: Any = None) -> Any:
        """As Detectron2's, with the model run as MODEL.LONG_TAIL.INFERENCE says."""
        prepared = prepared_for_inference(model, cfg.MODEL.LONG_TAIL.INFERENCE)
        return super().test(cfg, prepared, evaluators)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        """LVIS's metrics for a data set with LVIS's federated annotations, COCO's for others."""
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "lvis":
            return LVISEvaluator(dataset_name, output_dir=output_dir)
        return COCOEvaluator(dataset_name, output_dir=output_dir)


def build_checkpointer(
    cfg: Any, model: torch.nn.Module, **checkpointables: Any
) -> LongTailCheckpointer:
    """The checkpointer of a run: in OUTPUT_DIR, with the class statistics of STATS_FILE."""
    stats_file = cfg.MODEL.LONG_TAIL.STATS_FILE
    return LongTailCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        class_stats=ClassStats.load(stats_file) if stats_file else None,
        reinit_mismatched=cfg.MODEL.LONG_TAIL.REINIT_MISMATCHED,
        **checkpointables,
    )


def _ddp_on_cpu() -> AbstractContextManager[Any]:
    """Let DefaultTrainer distribute a model on the CPU.

    It calls ``create_ddp_model`` with the default ``device_ids``, the process's GPU, which
    DistributedDataParallel refuses for a model on the CPU.
    """
    on_cpu = functools.partial(create_ddp_model, device_ids=None)
    return mock.patch.object(defaults, "create_ddp_model", on_cpu)
