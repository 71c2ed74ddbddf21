"""A training composed of Detectron2's parts, in the manner of its plain training loop."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.calibration import CALIBRATIONS
from balms_det.data import build_train_loader, load_train_dataset, meta_sampler_of
from balms_det.decouple import find_modules, freeze_except
from balms_det.engine.checkpoint import LongTailCheckpointer
from balms_det.engine.class_stats import training_class_stats
from balms_det.engine.data_checks import check_data, fitted_to_data
from balms_det.engine.evaluate import evaluate
from balms_det.engine.feature_cache import build_feature_loader, cached_features
from balms_det.engine.hooks import FreezeLate, PutPendingScalars
from balms_det.engine.loop import AMPLoop, SimpleLoop
from balms_det.engine.meta import build_meta_learning
from balms_det.engine.summary import training_summary
from balms_det.modeling import provide_class_stats, speed_up_training, train_on_features

logger = logging.getLogger(__name__)


class LongTailTrainer:
    """A training of what the configuration describes.

    Attributes:
        cfg: the configuration.
        class_stats: of the training set.
        model: that is trained, not its distributed wrapper.
        loop: Detectron2's training loop, with this training's hooks.
        checkpointer: of the model and the loop.
        start_iter, max_iter: first iteration to train, and the one after the last.
        results: of the last evaluation, or None.
    """

    def __init__(self, cfg: Any, class_stats: ClassStats | None = None) -> None:
        """
        Args:
            cfg: checked by :func:`balms_det.engine.validate_config`.
            class_stats: of the training set; default :func:`training_class_stats`.
        """
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # as Detectron2's trainers do, where nobody has
        cfg = DefaultTrainer.auto_scale_workers(fitted_to_data(cfg), comm.get_world_size())
        self.cfg = cfg
        self.class_stats = class_stats or training_class_stats(cfg)
        check_data(cfg, self.class_stats)
        self.results: OrderedDict[str, Any] | None = None
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.model = build_long_tail_model(cfg, self.class_stats)
        optimizer = build_optimizer(cfg, self.model)
        loader = build_train_loader(cfg)
        loop_type = AMPLoop if cfg.SOLVER.AMP.ENABLED else SimpleLoop
        self.loop: SimpleTrainer = loop_type(distribute(self.model), loader, optimizer)
        self.checkpointer = build_checkpointer(
            cfg, self.model, self.class_stats, trainer=LoopState(self.loop)
        )
        self.loop.register_hooks(self._build_hooks())
        logger.info("Training:\n%s", training_summary(cfg, self.class_stats))

    def _build_hooks(self) -> list[HookBase | None]:
        """Return the hooks of the loop in their order."""
        cfg, loop = self.cfg, self.loop
        scheduler = build_lr_scheduler(cfg, loop.optimizer)
        decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
        freezes_late = decouple.ENABLED and decouple.START_ITER > 0
        main = comm.is_main_process()
        return [
            FreezeLate(decouple.START_ITER, decouple.TRAIN_MODULES, loop, distribute)
            if freezes_late
            else None,
            # Before the others: it reads the step's learning rate before the schedule moves it, and
            # what it learns belongs to the same iteration's checkpoint.
            build_meta_learning(cfg, self.model, loop.data_loader, self.class_stats),
            hooks.IterationTimer(),
            hooks.LRScheduler(loop.optimizer, scheduler),
            _precise_bn(cfg, self.model),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if main
            else None,
            # After the checkpointer, so that an evaluation that fails can be repeated.
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            PutPendingScalars(),
            # Last, so that it writes the metrics of the evaluation.
            hooks.PeriodicWriter(default_writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER), period=20)
            if main
            else None,
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load what the training starts from.

        Args:
            resume: continue from the last checkpoint in OUTPUT_DIR, if there is one. Otherwise load
                MODEL.WEIGHTS, which for a second stage is the checkpoint of a first stage.

        Raises:
            InputError: the checkpoint is missing, unreadable or does not fit.
        """
        decouple = self.cfg.MODEL.LONG_TAIL.DECOUPLE
        resumes = resume and self.checkpointer.has_checkpoint()
        if decouple.ENABLED and decouple.START_ITER == 0 and not resumes:
            self.checkpointer.load_first_stage(self.cfg.MODEL.WEIGHTS, reinit=decouple.REINIT)
        else:
            self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resumes:
            # The checkpoint has the iteration that was completed.
            self.start_iter = self.loop.iter + 1
        if decouple.ENABLED and decouple.FEATURE_CACHE:
            self._train_on_cached_features()

    def _train_on_cached_features(self) -> None:
        dataset = load_train_dataset(self.cfg)
        cache = cached_features(self.cfg, self.model, dataset)
        sampler = meta_sampler_of(self.loop.data_loader)
        self.loop.reset_data_loader(lambda: build_feature_loader(self.cfg, dataset, cache, sampler))
        train_on_features(self.model)

    def train(self) -> OrderedDict[str, Any] | None:
        """Train up to `max_iter`, and return the results of the last evaluation."""
        self.loop.train(self.start_iter, self.max_iter)
        if comm.is_main_process() and self.results is not None:
            verify_results(self.cfg, self.results)
        return self.results

    def _evaluate(self) -> OrderedDict[str, Any]:
        self.results = evaluate(self.cfg, self.model, self.class_stats)
        return self.results


class LoopState:
    """The state of a loop in checkpoints, in the format of Detectron2's DefaultTrainer."""

    def __init__(self, loop: SimpleTrainer) -> None:
        self._loop = loop

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks and, below ``_trainer``, the optimizer and gradient scaler."""
        state = self._loop.state_dict()
        hook_states = {"hooks": state.pop("hooks")} if "hooks" in state else {}
        return {"iteration": state["iteration"], **hook_states, "_trainer": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        hook_states = {"hooks": state["hooks"]} if "hooks" in state else {}
        self._loop.load_state_dict({**state["_trainer"], **hook_states})


def build_long_tail_model(cfg: Any, class_stats: ClassStats | None) -> nn.Module:
    """Build the model of a configuration.

    It is frozen where MODEL.LONG_TAIL.DECOUPLE says so, and computes as FAST_TRAINING says.

    Args:
        cfg: the configuration.
        class_stats: of the training set; None builds a model for inference only.

    Raises:
        InputError: MODEL.LONG_TAIL.CALIBRATION needs statistics and there are none.
    """
    detectron2_cfg = cfg.clone()
    detectron2_cfg.defrost()
    if class_stats is not None:
        # The model gets the object below: it need not read a file, or calibrate, before.
        detectron2_cfg.MODEL.LONG_TAIL.STATS_FILE = ""
        detectron2_cfg.MODEL.LONG_TAIL.CALIBRATION.NAME = _built_calibration(cfg)
    model: nn.Module = build_model(detectron2_cfg)
    logger.debug("Model:\n%s", model)
    if class_stats is not None:
        provide_class_stats(model, cfg.MODEL.LONG_TAIL, class_stats)
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


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that SOLVER.OPTIMIZER names."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    # Fused: one pass over the parameters instead of a dozen. A fused optimizer takes the scale of
    # mixed precision out of the gradients itself, after they were clipped.
    fused = not (cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.ENABLED)
    return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=fused)


def build_checkpointer(
    cfg: Any, model: nn.Module, class_stats: ClassStats | None = None, **checkpointables: Any
) -> LongTailCheckpointer:
    """Build the checkpointer of a run: in OUTPUT_DIR, with the class statistics."""
    return LongTailCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        class_stats=class_stats,
        reinit_mismatched=cfg.MODEL.LONG_TAIL.REINIT_MISMATCHED,
        **checkpointables,
    )


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for training in several processes; in one, return it as it is."""
    device = next(model.parameters()).device
    # Detectron2's default, the process's GPU, does not go with a model on the CPU.
    device_ids = None if device.type == "cpu" else [comm.get_local_rank()]
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
    return wrapped


def _built_calibration(cfg: Any) -> str:
    """Return the calibration to build a model with: one that needs no class statistics."""
    name: str = cfg.MODEL.LONG_TAIL.CALIBRATION.NAME
    return "none" if CALIBRATIONS[name] else name


def _precise_bn(cfg: Any, model: nn.Module) -> HookBase | None:
    """Return the hook of TEST.PRECISE_BN, or None."""
    if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model)):
        return None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # saves time and memory
    # A loader of its own, so that training's is not affected.
    loader = build_train_loader(cfg)
    return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)
