"""A training or an evaluation, as a command line asks for it, in one of its processes."""

import argparse
from collections.abc import Mapping
from typing import Any

from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from balms_det.engine.checkpoint import checkpoint_of_run
from balms_det.engine.class_stats import inference_class_stats
from balms_det.engine.data_checks import check_data, fitted_to_data
from balms_det.engine.evaluate import evaluate
from balms_det.engine.logs import set_up_logs
from balms_det.engine.output_directory import claim_for_training, make_writable
from balms_det.engine.setup import load_config
from balms_det.engine.trainer import LongTailTrainer, build_checkpointer, build_long_tail_model
from balms_det.runtime.errors import InputError
from balms_det.runtime.processes import exit_without_teardown


@exit_without_teardown
def run(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """Train or evaluate in one of the processes that :func:`balms_det.engine.launch` starts.

    Args:
        args: of the command `balms-det train`.

    Returns:
        The results of the last evaluation, in the main process.
    """
    cfg = load_config(args)
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes and not args.eval_only:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes "
            f"cannot share equally; set it to a multiple of {processes}"
        )
    if args.eval_only:
        _refuse_random_weights(cfg, resume=args.resume)
    if comm.is_main_process():
        if args.eval_only:
            make_writable(cfg.OUTPUT_DIR)
        else:
            claim_for_training(cfg.OUTPUT_DIR, resume=args.resume, overwrite=args.overwrite)
    comm.synchronize()
    set_up_logs(cfg.OUTPUT_DIR, comm.get_rank())
    if not args.eval_only:
        cfg = fitted_to_data(cfg)
    cfg.freeze()
    # Detectron2 logs the file of a configuration; one that is joined from several is logged whole.
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
    if args.eval_only:
        return _evaluate(cfg, resume=args.resume)
    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def _refuse_random_weights(cfg: Any, *, resume: bool) -> None:
    if not checkpoint_of_run(cfg, resume=resume):
        raise InputError(
            "there is nothing to evaluate: MODEL.WEIGHTS is '', and the weights would be random; "
            "set it to a checkpoint, such as OUTPUT_DIR/model_final.pth"
        )


def _evaluate(cfg: Any, *, resume: bool) -> Mapping[str, Any]:
    stats = inference_class_stats(cfg, checkpoint_of_run(cfg, resume=resume))
    check_data(cfg, stats, training=False)
    model = build_long_tail_model(cfg, stats)
    build_checkpointer(cfg, model, stats).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = evaluate(cfg, model, stats)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
