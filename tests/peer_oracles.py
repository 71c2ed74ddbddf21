"""Float64 loop transcriptions of the formulas of balms_det.losses, sharing no code with it.

Signature and result as the criterion's oracles in tests/oracles.py. `draws` are rows of numbers
where a loss draws at random.
"""

import math

from oracles import row_log_softmax, sigmoid, sigmoid_elements


def acsl_elements(
    logits, gt_classes, stats, memory, weights, threshold=0.7, ratios=(0.01, 0.1, 1.0), draws=None
):
    k = len(stats.groups)
    background = [i for i, gt in enumerate(gt_classes) if gt == k]
    suppressing = {}
    for column, group in enumerate("rcf"):
        by_draw = sorted(background, key=lambda i: draws[i][column] if draws else i)
        suppressing[group] = by_draw[: math.floor(len(background) * ratios[column])]
    rows = sigmoid_elements(logits, gt_classes, stats, memory, weights)
    for i, gt in enumerate(gt_classes):
        for j in range(k + 1):
            if j == gt:
                continue
            if gt == k:
                counts = i in suppressing[stats.groups[j]]
            else:
                counts = sigmoid(logits[i][j]) >= threshold
            if not counts:
                rows[i][j] = 0.0
    return rows


def drop_loss_mask(gt_classes, stats, threshold, draws):
    """1 for the elements that DropLoss keeps."""
    k = len(stats.image_counts)
    tail = [n / stats.num_annotated_images < threshold for n in stats.image_counts.tolist()]
    foreground = [gt for gt in gt_classes if gt < k]
    kept = sum(tail[gt] for gt in foreground) / len(foreground) if foreground else 1
    mask = []
    for i, gt in enumerate(gt_classes):
        mask.append([1] * k)
        for j in range(k):
            if tail[j] and j != gt and (gt < k or (draws[i][j] if draws else 0.5) >= kept):
                mask[i][j] = 0
    return mask


def masked(rows, mask):
    return [[x * m for x, m in zip(*pair, strict=True)] for pair in zip(rows, mask, strict=True)]


def drop_loss_elements(logits, gt_classes, stats, memory, weights, threshold=0.0011, draws=None):
    rows = sigmoid_elements(logits, gt_classes, stats, memory, weights)
    return masked(rows, drop_loss_mask(gt_classes, stats, threshold, draws))


def gumbel_elements(logits, gt_classes, stats, memory, weights):
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        rows.append([])
        for j, x in enumerate(row):
            x = min(max(x, -4.0), 10.0)
            # 1 - p = 1 - exp(-t) as t - t^2/2 + ..., where p would be rounded.
            t = math.exp(-x)
            series = math.fsum(-((-t) ** i) / math.factorial(i) for i in range(1, 12))
            not_p = series if t < 0.1 else 1 - math.exp(-t)
            rows[-1].append(t if j == gt else -math.log(not_p))
    return rows


def gumbel_optimised_elements(
    logits, gt_classes, stats, memory, weights, threshold=0.0011, draws=None
):
    rows = gumbel_elements(logits, gt_classes, stats, memory, weights)
    return masked(rows, drop_loss_mask(gt_classes, stats, threshold, draws))


def equilibrium_elements(
    logits, gt_classes, stats, memory, weights, momentum=0.9, background_score=0.01
):
    k = len(stats.image_counts)
    mean_scores = memory.setdefault("mean_scores", [0.01] * k)
    for j in range(k):
        scores = [
            math.exp(row_log_softmax(row)[j])
            for row, gt in zip(logits, gt_classes, strict=True)
            if gt == j
        ]
        if scores:
            batch_mean = sum(scores) / len(scores)
            mean_scores[j] = momentum * mean_scores[j] + (1 - momentum) * batch_mean
    s = [*mean_scores, background_score]
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        denominator = math.fsum(s[j] * math.exp(x - row[gt]) for j, x in enumerate(row))
        rows.append([math.log(denominator / s[gt])])
    return rows


def ecm_elements(
    logits, gt_classes, stats, memory, weights, background_ratio=6.3313, by="instances"
):
    counts = [max(n, 1) for n in stats.counts(by).tolist()]
    counts.append(background_ratio * sum(counts))
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        rows.append([])
        for j, x in enumerate(row):
            others = sum(n for i, n in enumerate(counts) if i != j)
            positive = counts[j] ** 0.25 + others**0.25
            w_positive, w_negative = positive / others**0.25, positive / counts[j] ** 0.25
            numerator, other = w_positive * math.exp(x), w_negative * math.exp(-x)
            surrogate = numerator / (numerator + other) if j == gt else other / (numerator + other)
            a = others / counts[j]
            rows[-1].append(-a * math.log((1 + a) / a) * math.log(surrogate))
    return rows


def sigmoid_of_twice_the_logits_elements(logits, gt_classes, stats, memory, weights):
    """ECM without margins and weights."""
    doubled = [[2 * x for x in row] for row in logits]
    return sigmoid_elements(doubled, gt_classes, stats, memory, weights)


def bags_elements(
    logits,
    gt_classes,
    stats,
    memory,
    weights,
    boundaries=(10, 100, 1000),
    beta=8.0,
    draws=None,
):
    k, num_groups = len(stats.instance_counts), len(boundaries) + 1
    group_of = [sum(n >= b for b in boundaries) for n in stats.instance_counts.tolist()]
    memory["activation.class_groups"] = group_of
    num_rows = len(gt_classes)
    rows = [
        [-row_log_softmax(row[-2:])[1 if gt == k else 0]]
        for row, gt in zip(logits, gt_classes, strict=True)
    ]
    for group in range(num_groups):
        classes = [j for j in range(k) if group_of[j] == group]
        inside = [i for i in range(num_rows) if gt_classes[i] in classes]
        outside = [i for i in range(num_rows) if gt_classes[i] not in classes]
        outside.sort(key=lambda i: draws[i][group] if draws else i)
        chosen = inside + outside[: math.floor(beta * len(inside))]
        for i in chosen:
            bin_logits = [logits[i][k + group], *(logits[i][j] for j in classes)]
            label = 1 + classes.index(gt_classes[i]) if i in inside else 0
            rows[i][0] -= row_log_softmax(bin_logits)[label] * num_rows / len(chosen)
    return rows


def two_softmaxes_elements(logits, gt_classes, stats, memory, weights):
    """BAGS of one group, trained on all rows: classes or others, and object or background."""
    k = len(stats.image_counts)
    return [
        [-row_log_softmax(row[: k + 1])[gt] - row_log_softmax(row[-2:])[1 if gt == k else 0]]
        for row, gt in zip(logits, gt_classes, strict=True)
    ]
