"""Train or evaluate a detector: --config-file configs/lvis_r50_balsig.yaml [KEY VALUE ...]

The command line is Detectron2's, plus --dataset NAME JSON IMAGE_ROOT for your own data.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from balms_det.engine import (
    LongTailTrainer,
    argument_parser,
    build_checkpointer,
    build_long_tail_model,
    checkpoint_of_run,
    evaluate,
    inference_class_stats,
    load_config,
)
from balms_det.runtime.processes import exit_without_teardown


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser(__doc__).parse_args(argv)
    launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


@exit_without_teardown
def train(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """Train or evaluate in one of the processes that :func:`main` launches."""
    cfg = load_config(args)
    cfg.freeze()
    # Detectron2 logs the file of a configuration; one that is joined from several is logged whole.
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="balms_det")

    if args.eval_only:
        weights = checkpoint_of_run(cfg, resume=args.resume)
        stats = inference_class_stats(cfg, weights)
        model = build_long_tail_model(cfg, stats)
        build_checkpointer(cfg, model, stats).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = evaluate(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
