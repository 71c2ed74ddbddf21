"""Classification losses for a long tail of classes: objects, and the pure functions below them.

    BalancedSigmoid(counts, tau=1.0, rows="foreground")(logits, gt_classes)

Shapes and names used throughout:
    R: number of RoIs (sampled proposals) in the batch.
    K: number of foreground classes; the background has the index K.
    logits: (R, K) for sigmoid losses; (R, K + 1), background last, for softmax losses. Any
        floating dtype; half precisions are computed in float32.
    gt_classes: (R,) int64 in [0, K].
    n_j: training count of class j;  n = sum_j n_j;  k = K.
    draws: random numbers that a loss uses, uniform in [0, 1); by default drawn anew from PyTorch's
        generator of the device.

No function changes its inputs. An empty batch (R = 0) gives a zero that can be backpropagated.
Each formula of a peer is transcribed from its authors' released code, which the docstring names;
the docstring states each deviation from that code.
"""

from balms_det.losses.acsl import ACSL, adaptive_class_suppression_loss
from balms_det.losses.activations import group_log_sums
from balms_det.losses.bags import BAGS, group_softmax_loss, instance_count_groups
from balms_det.losses.balanced import (
    BalancedSigmoid,
    BalancedSoftmax,
    balanced_sigmoid_loss,
    balanced_sigmoid_margins,
    balanced_softmax_loss,
    balanced_softmax_shifts,
    shifted_softmax_loss,
)
from balms_det.losses.droploss import DropLoss, drop_loss
from balms_det.losses.ecm import (
    ECM,
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
    EQLv2,
    Equalization,
    SoftmaxEqualization,
    eqlv2_gradients,
    eqlv2_loss,
    equalization_loss,
    softmax_equalization_loss,
)
from balms_det.losses.focal import Focal, focal_loss
from balms_det.losses.gol import GOL, gumbel_optimised_loss
from balms_det.losses.ldam import LDAM, ldam_loss, ldam_margins
from balms_det.losses.loce import LOCE, equilibrium_advance, equilibrium_loss, equilibrium_observe
from balms_det.losses.loss import InferenceOnly, Loss, RunningState, TrainingClasses
from balms_det.losses.pcb import (
    EQLv2PCB,
    SeesawPCB,
    SoftmaxPCB,
    confusion_advance,
    confusion_observe,
    pairwise_targets,
)
from balms_det.losses.plain import Sigmoid, Softmax, sigmoid_loss, softmax_loss
from balms_det.losses.seesaw import Seesaw, seesaw_logits, seesaw_loss, seesaw_samples
from balms_det.losses.tail import TailLoss
from balms_det.losses.weights import (
    ClassWeights,
    FederatedClasses,
    LearnedClassWeights,
    effective_number_weights,
    federated_classes,
    inverse_frequency_weights,
    normalised_over_instances,
)

__all__ = [
    "ACSL",
    "BAGS",
    "BalancedSigmoid",
    "BalancedSoftmax",
    "ClassWeights",
    "DropLoss",
    "ECM",
    "EQLv2",
    "EQLv2PCB",
    "Equalization",
    "FederatedClasses",
    "Focal",
    "GOL",
    "InferenceOnly",
    "LDAM",
    "LOCE",
    "LearnedClassWeights",
    "Loss",
    "Reduction",
    "RunningState",
    "Seesaw",
    "SeesawPCB",
    "Sigmoid",
    "Softmax",
    "SoftmaxPCB",
    "SoftmaxEqualization",
    "TailLoss",
    "TrainingClasses",
    "accumulated",
    "adaptive_class_suppression_loss",
    "at_least_float32",
    "balanced_sigmoid_loss",
    "balanced_sigmoid_margins",
    "balanced_softmax_loss",
    "balanced_softmax_shifts",
    "confusion_advance",
    "confusion_observe",
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
    "normalised_over_instances",
    "one_hot_targets",
    "pairwise_targets",
    "reduce_losses",
    "seesaw_logits",
    "seesaw_loss",
    "seesaw_samples",
    "shifted_softmax_loss",
    "sigmoid_loss",
    "softmax_equalization_loss",
    "softmax_loss",
]
