"""ROI heads, losses and a backbone. Importing this registers them with Detectron2."""

from balms_det.modeling.class_stats import provide_class_stats
from balms_det.modeling.efficientnet_lite import (
    EfficientNetLite,
    build_efficientnet_lite_fpn_backbone,
)
from balms_det.modeling.fast.execution import (
    PRECISIONS,
    prepared_for_inference,
    speed_up_training,
    use_matrix_products,
)
from balms_det.modeling.lazy import criterion_from_options
from balms_det.modeling.mask_head import LongTailMaskHead
from balms_det.modeling.predictor import LongTailPredictor
from balms_det.modeling.roi_features import sampled_roi_features, train_on_features
from balms_det.modeling.roi_heads import LongTailCascadeROIHeads, LongTailROIHeads

__all__ = [
    "PRECISIONS",
    "EfficientNetLite",
    "LongTailCascadeROIHeads",
    "LongTailMaskHead",
    "LongTailPredictor",
    "LongTailROIHeads",
    "build_efficientnet_lite_fpn_backbone",
    "criterion_from_options",
    "prepared_for_inference",
    "provide_class_stats",
    "sampled_roi_features",
    "speed_up_training",
    "train_on_features",
    "use_matrix_products",
]
