"""Corrections of logits, which need the classifier or its statistics.

Names and shapes as in the package.
"""

import torch
from torch import Tensor


def tau_normalized_logits(logits: Tensor, weight: Tensor, bias: Tensor, tau: float) -> Tensor:
    """Return the logits of a linear classifier whose rows are w_j / ||w_j||^tau (arXiv:1910.09217,
    eq. 3).

    The paper drops the bias, which for a balanced test set of images without background costs
    nothing. A detector's bias says how rare each class is among proposals, so it stays as it is,
    and the background's row, which is not for this function to see, does so too.

    Args:
        logits: (R, K) of the foreground classes, as the classifier gave them.
        weight: (K, D), its rows w_j; one of zeros stays.
        bias: (K,).
        tau: 0 or more; the paper selects it in [0, 1] on held-out data.
    """
    norms = weight.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1)
    return (logits - bias) * norms**-tau + bias
