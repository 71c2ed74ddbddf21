"""The derivative of a meta loss through one SGD step of a linear classifier, in closed form.

Meta Sampler and Meta Reweighter (arXiv:2007.10740, section 3.4) learn one rate per class so that
the step that the training loss L asks for lowers another loss, M, on a class-balanced meta batch:

    theta' = theta - alpha d,  d the direction that SGD takes for the gradient of L at theta
    psi    <- psi - Adam( dM(theta')/dpsi )

For a head z_i = W f_i + b no second backward pass is needed. Give each row a weight,
L = sum_i w_i l_i, and write E_i for the gradient of L at the logits of row i, which
backpropagation computes anyway and which has the factor w_i. Then

    dL/dW = sum_i E_i f_i^T,  dL/db = sum_i E_i,

and as E_i is proportional to w_i, the derivatives of these sums to log w_i are their i-th terms.
SGD's direction is linear in the gradient of L. With momentum mu it is

    v' = mu v + (dL + lambda theta),  d = v'  or, with Nesterov's momentum,  (dL + ...) + mu v',

so that dd/dL is 1, or 1 + mu. Momentum and weight decay otherwise change theta' and nothing else.
With the meta gradient G = dM/dW, g = dM/db at theta' the chain rule gives, for every row,

    dM/dlog w_i = -alpha (1 + mu if Nesterov) E_i . (G f_i + g).

That is the cost of one more pass of the rows through a linear layer, and nothing of the size
R x C x D is ever made. How w depends on psi is the rest of the chain, further down.

Shapes and names used throughout:
    R: rows (RoIs, or images in classification) of the training batch. B: draws, i.e. its images.
    K: classes. C: logits. D: features. Any floating dtype.
    rate_logits: (K,) psi. rates: sigmoid(psi), in (0, 1).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sgd_step(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Return what a step of :class:`torch.optim.SGD` makes of `parameter`, which stays as it is.

    Args:
        parameter: theta, any shape.
        gradient: of the training loss, the same shape.
        momentum_buffer: the optimizer's, None before its first step. It is not changed.
        lr, momentum, weight_decay, nesterov: as of SGD; its dampening is zero.
    """
    gradient = gradient + weight_decay * parameter
    velocity = gradient if momentum_buffer is None else momentum * momentum_buffer + gradient
    return parameter - lr * (gradient + momentum * velocity if nesterov else velocity)


def loss_and_logit_gradients(
    loss: Callable[[Tensor], Tensor], logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scalar ``loss(logits)`` and its (R, C) gradient.

    No graph of the logits is needed or kept.
    """
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def head_gradient(features: Tensor, row_gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient at a linear layer from that at its outputs.

    Args:
        features: (R, D), the layer's inputs.
        row_gradients: (R, C) of a scalar loss, from :func:`loss_and_logit_gradients`.

    Returns:
        (C, D) at the weight and (C,) at the bias.
    """
    return row_gradients.T @ features, row_gradients.sum(0)


def log_weight_gradients(
    features: Tensor,
    row_gradients: Tensor,
    meta_gradient: tuple[Tensor, Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Return dM/dlog w_i of every row of the training batch; where w_i is one, also dM/dw_i.

    Args:
        features: (R, D), inputs of the head in training.
        row_gradients: (R, C) E, of the training loss as it is minimised, with all its factors.
        meta_gradient: (C, D) and (C,), the :func:`head_gradient` of the meta loss at theta'.
        lr, momentum, nesterov: of the SGD step.

    Returns:
        (R,). Positive where more of the row would make the meta loss larger.
    """
    weight, bias = meta_gradient
    step = lr * (1 + momentum if nesterov else 1)
    return -step * (row_gradients * F.linear(features, weight, bias)).sum(1)


def initial_rate_logits(class_counts: Tensor, power: float = 0.0) -> Tensor:
    """Return psi before training (authors' release for classification): rates falling as
    n_j^-power.

    The largest and the smallest rate add up to one, so that a power of zero gives rates of 1/2.

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.
        power: 0 or more. Release: 0, on ImageNet-LT 0.1, on Places-LT 0.3.

    Returns:
        (K,) float64.
    """
    rates = class_counts.to(torch.float64).clamp(min=1) ** -power
    return (rates / (rates.min() + rates.max())).logit()


def class_log_weights(class_masses: Tensor, rate_logits: Tensor) -> Tensor:
    """Return (K,) log of the unnormalised probability that the Meta Sampler draws each class.

    An example is drawn in proportion to its class's rate, so a class in proportion to its rate
    times the number of its examples.

    Args:
        class_masses: (K,) number of examples; zero for a class that is never drawn.
        rate_logits: (K,) psi.
    """
    return class_masses.log() + F.logsigmoid(rate_logits)


def draw_classes(
    log_weights: Tensor,
    num_draws: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw classes with Gumbel noise, and with the same noise their relaxation.

    The paper draws among the N examples. Among the examples of a class, the largest log p + g is
    distributed as log of their summed p, plus Gumbel noise: to draw the class first, and then
    uniformly one of its examples, is the same draw with K instead of N numbers.

    Args:
        log_weights: (K,) from :func:`class_log_weights`, at least one of them finite.
        num_draws: B.
        temperature: T, positive. Release: 1.
        generator: of the noise.

    Returns:
        (B,) int64 classes and (B, K) rows that sum to one, as :func:`choose_classes`.
    """
    noise = log_weights.new_empty(num_draws, len(log_weights)).exponential_(generator=generator)
    # -log of an exponential variable is a Gumbel variable; single precision can draw a zero.
    noise = -noise.clamp(min=torch.finfo(noise.dtype).tiny).log()
    return choose_classes(log_weights, noise, temperature=temperature)


def choose_classes(
    log_weights: Tensor, noise: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the classes that given noise draws, and their relaxation.

        drawn = argmax_j (log p_j + g_j),  relaxed = softmax((log p + g) / T)

    Args:
        log_weights: (K,) log p, up to a constant.
        noise: (B, K) g, of the standard Gumbel distribution.
        temperature: T, positive.

    Returns:
        (B,) int64 and (B, K).
    """
    perturbed = log_weights + noise
    return perturbed.argmax(1), (perturbed / temperature).softmax(1)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Return (K,) mean of each class, and of all together for a class that does not occur.

    Nothing is known about a class without a draw in the batch. The mean of all is the value that
    makes its share of a straight-through estimate move no rate.

    Args:
        sums, counts: (K,) over the draws, those of all processes where there are several; on any
            scale that they share.
    """
    overall = sums.sum() / counts.sum().clamp(min=torch.finfo(sums.dtype).tiny)
    return torch.where(counts > 0, sums / counts.masked_fill(counts == 0, 1), overall)


def sampler_rate_gradient(
    class_gradients: Tensor, relaxed: Tensor, rate_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Return dM/dpsi of the Meta Sampler, by the straight-through Gumbel estimate.

    The training loss of a batch is sum_b sum_j s_bj l_j, where s_b, the choice of draw b, is
    one-hot, and l_j is the mean loss of the batch's draws of class j. Forward, s_b is what was
    drawn; backward, it is its relaxation y_b. With h_j = dM/ds_bj:

        dM/dpsi_j = (1 - sigma(psi_j)) / T  sum_b y_bj (h_j - sum_k y_bk h_k)

    The authors' release multiplies the loss of a draw by its one-hot choice twice, once without
    gradient, which leaves h_j = 0 for all but the class that was drawn; what the draws have in
    common then favours the classes that are drawn most.

    Args:
        class_gradients: (K,) h, the :func:`class_means` over draws of their summed
            :func:`log_weight_gradients`.
        relaxed: (B, K) y, from :func:`draw_classes`.
        rate_logits: (K,) psi.
        temperature: T, as in the draw.

    Returns:
        (K,), a sum over the draws: those of several processes add up.
    """
    centred = class_gradients - (relaxed @ class_gradients)[:, None]
    return (-rate_logits).sigmoid() * (relaxed * centred).sum(0) / temperature


def reweighter_weights(gt_classes: Tensor, rate_logits: Tensor) -> Tensor:
    """Return the weights of the Meta Reweighter: w_i = F sigma_i / S of F foreground rows, one of
    others.

    sigma_i is the rate of a row's class and S the sum of the F rates, so that foreground rows have
    a mean weight of one, as in the authors' release for instance segmentation.

    Args:
        gt_classes: (R,) in [0, K], K being the background.
        rate_logits: (K,) psi.

    Returns:
        (R,), positive.
    """
    is_foreground = gt_classes < len(rate_logits)
    # A softmax over the foreground rows: no sum of rates that may all have underflowed.
    log_rates = F.pad(F.logsigmoid(rate_logits), (0, 1), value=-torch.inf)[gt_classes]
    shares = log_rates.softmax(0)
    return torch.where(is_foreground, is_foreground.sum() * shares, torch.ones_like(shares))


def reweighter_rate_gradient(
    row_gradients: Tensor, gt_classes: Tensor, rate_logits: Tensor
) -> Tensor:
    """Return dM/dpsi of the Meta Reweighter.

        dlog w_i/dpsi_j = (1 - sigma_j) ([y_i = j] - n_j sigma_j / S),  n_j rows of class j

    Args:
        row_gradients: (R,) dM/dlog w_i, from :func:`log_weight_gradients`.
        gt_classes: (R,) in [0, K].
        rate_logits: (K,) psi.

    Returns:
        (K,).
    """
    num_classes = len(rate_logits)
    is_foreground = gt_classes < num_classes
    row_gradients = row_gradients * is_foreground
    shares = reweighter_weights(gt_classes, rate_logits) / is_foreground.sum().clamp(min=1)
    excess = row_gradients - row_gradients.sum() * shares * is_foreground
    per_class = excess.new_zeros(num_classes + 1).index_add(0, gt_classes, excess)[:-1]
    return (-rate_logits).sigmoid() * per_class
