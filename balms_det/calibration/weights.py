"""Factors on the probabilities of the classes; names and shapes as in the package."""

import torch
from torch import Tensor


def logit_adjustment_weights(class_counts: Tensor, tau: float) -> Tensor:
    """Return factors on the odds of each class: (n_j k / n)^-tau (arXiv:2007.07314, eq. 9).

    The paper subtracts tau log pi_j from each logit, pi_j = n_j / n. Here it is
    tau log(pi_j / (1/k)), which differs by one constant: a class of mean count stays where it is,
    and so does a softmax's background, whose frequency the sampler of proposals sets and not the
    data set. tau = 1 is the paper's.

    Args:
        class_counts: (K,) n_j.
        tau: 0 or more.

    Returns:
        (K,) float64.
    """
    counts = class_counts.to(torch.float64).clamp(min=1)
    return (counts / counts.mean()) ** -tau


def norcal_weights(class_counts: Tensor, gamma: float) -> Tensor:
    """Return factors on the probability of each class: n_j^-gamma (NorCal, arXiv:2107.02170).

    Args:
        class_counts: (K,) n_j; the authors count images.
        gamma: 0 or more; the authors tune it on held-out data.

    Returns:
        (K,) float64.
    """
    return class_counts.to(torch.float64).clamp(min=1) ** -gamma


def fracal_weights(
    class_counts: Tensor,
    box_dimensions: Tensor,
    *,
    total: int | None = None,
    power: float = 2.0,
    strength: float = 1.0,
    exclusive: bool = True,
) -> Tensor:
    """Return the factors of FRACAL (arXiv:2410.11774; code: kostas1515/FRACAL).

    With p_j = n_j / n, a softmax's logits are shifted and its probabilities divided, background as
    it is, and then normalised:

        softmax(z - log10(K p))_j / D_j^lambda

    which :func:`reweight_exclusive` does with (K p_j)^(-1 / ln 10) D_j^-lambda. A sigmoid is
    multiplied by another one, which :meth:`Calibration.forward` does with the exponential of the
    shift between them:

        sigmoid(z_j) sigmoid(z_j - log10(K p_j) - log10(K D_j^lambda / sum_i D_i^lambda))

    Args:
        class_counts: (K,) n_j; zeros are clamped to one. The authors count images.
        box_dimensions: (K,) D_j.
        total: n; default sum_j n_j. With image counts, the authors take all images.
        power: lambda, 0 or more.
        strength: factor on both logarithms; 1 is the paper's.
        exclusive: whether for a softmax or for sigmoids.

    Returns:
        (K,) float64.
    """
    counts = class_counts.to(torch.float64).clamp(min=1)
    num_classes = len(counts)
    shifts = -(num_classes * counts / (counts.sum() if total is None else total)).log10()
    spread = box_dimensions.to(torch.float64) ** power
    if exclusive:
        return (strength * shifts).exp() * spread**-strength
    return (strength * (shifts - (num_classes * spread / spread.sum()).log10())).exp()
