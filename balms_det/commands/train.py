"""Train or evaluate a detector.

balms-det train --config-file configs/lvis_r50_balsig.yaml --num-gpus 8
balms-det train --config-file rcnn_fpn+balsig \
    --dataset my_train train.json images/ --dataset my_val val.json images/ \
    DATASETS.TRAIN my_train DATASETS.TEST my_val MODEL.ROI_HEADS.NUM_CLASSES 24
"""

from collections.abc import Sequence

from balms_det.runtime.arguments import training_parser


def main(argv: Sequence[str] | None = None) -> None:
    args = training_parser(__doc__).parse_args(argv)
    from balms_det.engine import launch, run  # seconds to import, which help does not need

    launch(run, args)
