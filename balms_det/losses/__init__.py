"""Classification losses for a long tail of classes, as pure functions.

Shapes and names used throughout:
    R: number of RoIs (sampled proposals) in the batch.
    K: number of foreground classes; the background has the index K.
    logits: (R, K) for sigmoid losses; (R, K + 1), background last, for softmax losses. Any
        floating dtype; half precisions are computed in float32.
    gt_classes: (R,) int64 in [0, K].
    n_j: training count of class j;  n = sum_j n_j;  k = K.

No function changes its inputs. An empty batch (R = 0) gives a zero that can be backpropagated.
"""

from balms_det.losses.acsl import adaptive_class_suppression_loss
from balms_det.losses.bags import group_log_sums, group_softmax_loss, instance_count_groups
from balms_det.losses.balanced import (
    balanced_sigmoid_loss,
    balanced_sigmoid_margins,
    balanced_softmax_loss,
    balanced_softmax_shifts,
    shifted_softmax_loss,
)
from balms_det.losses.droploss import drop_loss
from balms_det.losses.ecm import (
    effective_class_margin_loss,
    effective_class_margin_shifts,
    effective_class_margin_weights,
)
from balms_det.losses.elements import (
    Reduction,
    accumulated,
    at_least_float32,
    one_hot_targets,
    reduce_losses,
)
from balms_det.losses.equalization import (
    eqlv2_gradients,
    eqlv2_loss,
    equalization_loss,
    softmax_equalization_loss,
)
from balms_det.losses.focal import focal_loss
from balms_det.losses.gol import gumbel_optimised_loss
from balms_det.losses.ldam import ldam_loss, ldam_margins
from balms_det.losses.loce import equilibrium_advance, equilibrium_loss, equilibrium_observe
from balms_det.losses.plain import sigmoid_loss, softmax_loss
from balms_det.losses.seesaw import seesaw_loss, seesaw_samples
from balms_det.losses.weights import (
    effective_number_weights,
    federated_classes,
    inverse_frequency_weights,
)

__all__ = [
    "Reduction",
    "accumulated",
    "adaptive_class_suppression_loss",
    "at_least_float32",
    "balanced_sigmoid_loss",
    "balanced_sigmoid_margins",
    "balanced_softmax_loss",
    "balanced_softmax_shifts",
    "drop_loss",
    "effective_class_margin_loss",
    "effective_class_margin_shifts",
    "effective_class_margin_weights",
    "effective_number_weights",
    "eqlv2_gradients",
    "eqlv2_loss",
    "equalization_loss",
    "equilibrium_advance",
    "equilibrium_loss",
    "equilibrium_observe",
    "federated_classes",
    "focal_loss",
    "group_log_sums",
    "group_softmax_loss",
    "gumbel_optimised_loss",
    "instance_count_groups",
    "inverse_frequency_weights",
    "ldam_loss",
    "ldam_margins",
    "one_hot_targets",
    "reduce_losses",
    "seesaw_loss",
    "seesaw_samples",
    "shifted_softmax_loss",
    "sigmoid_loss",
    "softmax_equalization_loss",
    "softmax_loss",
]
