"""Float64 loop transcriptions of the formulas, sharing no code with the package."""

import math


def softmax_cross_entropy(logits, gt_classes):
    """Sum over rows of -log softmax(row)[gt]."""
    total = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        largest = max(row)
        log_sum = largest + math.log(sum(math.exp(x - largest) for x in row))
        total += log_sum - row[gt]
    return total


def binary_cross_entropy(logit, target):
    """-log sigmoid(logit) for target 1, -log(1 - sigmoid(logit)) for target 0."""
    signed = logit if target else -logit
    if signed > 0:
        return math.log1p(math.exp(-signed))
    return -signed + math.log1p(math.exp(signed))


def sigmoid_cross_entropy(logits, gt_classes):
    """Sum over rows and classes; a background row has no positive class."""
    total = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        for j, logit in enumerate(row):
            total += binary_cross_entropy(logit, j == gt)
    return total


def balanced_sigmoid_margin(counts, j, total=None, constant="keep"):
    """log[ (n/k)/n_j * (n - n_j)/(n - n/k) ], or log[ (n - n_j)/n_j ]."""
    k = len(counts)
    n = max(sum(counts) if total is None else total, 2)
    n_j = min(max(counts[j], 1), n - 1)
    if constant == "drop":
        return math.log((n - n_j) / n_j)
    if k == 1:
        return 0.0
    return math.log((n / k) / n_j * (n - n_j) / (n - n / k))


def balanced_sigmoid(logits, gt_classes, counts, rows, total=None, constant="keep"):
    """Sum over rows and classes of the cross-entropy of sigmoid(logit - margin)."""
    k = len(counts)
    result = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        shifted = rows == "all" or gt < k
        for j, logit in enumerate(row):
            margin = balanced_sigmoid_margin(counts, j, total, constant) if shifted else 0.0
            result += binary_cross_entropy(logit - margin, j == gt)
    return result


def balanced_softmax(logits, gt_classes, counts):
    """Sum over rows of -log [ n_gt exp(logit_gt) / sum_j n_j exp(logit_j) ]."""
    total = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        terms = [max(n, 1) * math.exp(x) for x, n in zip(row, counts, strict=True)]
        total -= math.log(terms[gt] / sum(terms))
    return total


def frequencies(image_classes, num_classes):
    """(image frequency, instance-aware frequency) of each class.

    `image_classes` lists, for each image, the class of each annotation.
    """
    total = sum(len(classes) for classes in image_classes)
    by_image, aware = [], []
    for j in range(num_classes):
        images = sum(1 for classes in image_classes if j in classes)
        instances = sum(classes.count(j) for classes in image_classes)
        by_image.append(images / len(image_classes))
        aware.append(math.sqrt(images / len(image_classes) * instances / total))
    return by_image, aware


def repeat_factors(image_classes, frequency, threshold, sqrt=True):
    """For each image, the largest max(1, sqrt(t / f)) of its classes."""
    factors = []
    for classes in image_classes:
        factor = 1.0
        for j in classes:
            ratio = threshold / frequency[j]
            factor = max(factor, math.sqrt(ratio) if sqrt else ratio)
        factors.append(factor)
    return factors


def class_then_image(image_classes, num_classes, power):
    """Probability of each image: a class by count ** power, then one of its images."""
    counts = [sum(1 for classes in image_classes if j in classes) for j in range(num_classes)]
    total = sum(count**power for count in counts if count)
    probs = []
    for classes in image_classes:
        prob = 0.0
        for j in set(classes):
            prob += counts[j] ** power / total / counts[j]
        probs.append(prob)
    return probs


def softmax_rows(logits):
    rows = []
    for row in logits.tolist():
        largest = max(row)
        terms = [math.exp(x - largest) for x in row]
        rows.append([term / sum(terms) for term in terms])
    return rows


def adjusted_logits(logits, counts, tau):
    """eta_j - tau log(pi_j k) for the classes; a background column, if there is one, as it is."""
    counts = [max(n, 1) for n in counts]
    rows = []
    for row in logits.tolist():
        shifted = list(row)
        for j, n in enumerate(counts):
            shifted[j] -= tau * math.log(n / sum(counts) * len(counts))
        rows.append(shifted)
    return rows


def norcal(probs, counts, gamma, normalise):
    """p_j / n_j^gamma, divided by their sum with the background's probability or not."""
    rows = []
    for row in probs.tolist():
        scaled = [p / max(n, 1) ** gamma for p, n in zip(row, counts, strict=False)] + [row[-1]]
        total = sum(scaled) if normalise else 1.0
        rows.append([p / total for p in scaled])
    return rows


def fracal_softmax(logits, frequencies, dimensions, power=2.0):
    """FRACAL, arXiv:2410.11774: logits less log10(K p), the softmax over D^lambda, normalised."""
    k = len(frequencies)
    rows = []
    for row in logits.tolist():
        shifted = [z - math.log10(k * p) for z, p in zip(row, frequencies, strict=False)] + row[k:]
        exponentials = [math.exp(z) for z in shifted]
        spread = [e / d**power for e, d in zip(exponentials, [*dimensions, 1.0], strict=True)]
        rows.append([e / sum(spread) for e in spread])
    return rows


def fracal_sigmoid(logits, frequencies, dimensions, power=2.0):
    """Its form for sigmoids, of the authors' code: the product of two sigmoids."""
    k = len(frequencies)
    spread = [d**power / sum(e**power for e in dimensions) for d in dimensions]
    return [
        [
            sigmoid(z) * sigmoid(z - math.log10(k * p) - math.log10(k * w))
            for z, p, w in zip(row, frequencies, spread, strict=True)
        ]
        for row in logits.tolist()
    ]


def normalised_logits(logits, means, deviations):
    """LogN, arXiv:2203.17020: each logit less its mean above the least, over its deviation."""
    least = min(means)
    return [
        [(z - (m - least)) / s for z, m, s in zip(row, means, deviations, strict=True)]
        for row in logits.tolist()
    ]


# The loss of every criterion, element by element: rows of the classes' elements for a loss that
# treats each class by itself, rows of one element for others. `memory` is what a loss remembers, by
# the name of the criterion's buffer; an oracle with a memory fills and changes it by itself.


def row_log_softmax(row):
    largest = max(row)
    log_sum = largest + math.log(sum(math.exp(x - largest) for x in row))
    return [x - log_sum for x in row]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softmax_elements(logits, gt_classes, stats, memory, weights):
    return [[-row_log_softmax(row)[gt]] for row, gt in zip(logits, gt_classes, strict=True)]


def sigmoid_elements(logits, gt_classes, stats, memory, weights):
    return [
        [binary_cross_entropy(x, j == gt) for j, x in enumerate(row)]
        for row, gt in zip(logits, gt_classes, strict=True)
    ]


def balanced_softmax_elements(logits, gt_classes, stats, memory, weights):
    counts = [max(n, 1) for n in stats.instance_counts.tolist()]
    log_priors = [math.log(n) for n in (*counts, sum(counts) / len(counts))]
    shifted = [[x + m for x, m in zip(row, log_priors, strict=True)] for row in logits]
    return softmax_elements(shifted, gt_classes, stats, memory, weights)


def balanced_sigmoid_elements(logits, gt_classes, stats, memory, weights):
    counts = stats.instance_counts.tolist()
    margins = [balanced_sigmoid_margin(counts, j) for j in range(len(counts))]
    shifted = [
        [x - m if gt < len(counts) else x for x, m in zip(row, margins, strict=True)]
        for row, gt in zip(logits, gt_classes, strict=True)
    ]
    return sigmoid_elements(shifted, gt_classes, stats, memory, weights)


def focal_elements(logits, gt_classes, stats, memory, weights, gamma=2.0, alpha=0.25):
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        elements = []
        for j, x in enumerate(row):
            p_t = sigmoid(x) if j == gt else sigmoid(-x)
            one_minus_p_t = sigmoid(-x) if j == gt else sigmoid(x)
            alpha_t = 1 if alpha < 0 else alpha if j == gt else 1 - alpha
            elements.append(-alpha_t * one_minus_p_t**gamma * math.log(p_t))
        rows.append(elements)
    return rows


def ldam_elements(logits, gt_classes, stats, memory, weights, scale=1.0, max_margin=0.5):
    counts = [max(n, 1) for n in stats.instance_counts.tolist()]
    c = max_margin * min(counts) ** 0.25
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        z = [x / scale for x in row]
        if gt < len(counts):
            z[gt] -= c / counts[gt] ** 0.25
        rows.append([-row_log_softmax([scale * x for x in z])[gt]])
    return rows


def equalization_elements(logits, gt_classes, stats, memory, weights, threshold=0.0011):
    k = len(stats.image_counts)
    rows = sigmoid_elements(logits, gt_classes, stats, memory, weights)
    for row, gt in zip(rows, gt_classes, strict=True):
        for j in range(k):
            e = 1 if gt < k else 0
            t = 1 if stats.image_counts[j] / stats.num_annotated_images < threshold else 0
            row[j] *= 1 - e * t * (1 - (j == gt))
    return rows


def softmax_equalization_elements(
    logits, gt_classes, stats, memory, weights, threshold=0.0011, beta=None
):
    """`beta`: rows of zeros and ones for the classes; None for ones."""
    k = len(stats.image_counts)
    rows = []
    for i, (row, gt) in enumerate(zip(logits, gt_classes, strict=True)):
        denominator = 0.0
        for j, x in enumerate(row):
            w = 1
            if j < k and gt < k and j != gt:
                t = 1 if stats.image_counts[j] / stats.num_annotated_images < threshold else 0
                w = 1 - (1 if beta is None else beta[i][j]) * t
            denominator += w * math.exp(x)
        rows.append([math.log(denominator) - row[gt]])
    return rows


def eqlv2_elements(logits, gt_classes, stats, memory, weights, gamma=12.0, mu=0.8, alpha=4.0):
    k = len(stats.image_counts)
    pos = memory.setdefault("pos_grads", [0.0] * k)
    neg = memory.setdefault("neg_grads", [0.0] * k)
    ratio = [p / (n + 1e-10) if n > 0 else 100.0 for p, n in zip(pos, neg, strict=True)]
    neg_weight = [*(sigmoid(gamma * (g - mu)) for g in ratio), 1.0]
    rows = []
    for i, (row, gt) in enumerate(zip(logits, gt_classes, strict=True)):
        elements = []
        for j, x in enumerate(row):
            w = 1 + alpha * (1 - neg_weight[j]) if j == gt else neg_weight[j]
            elements.append(w * binary_cross_entropy(x, j == gt))
            if j < k:
                outer = weights[i][j] if weights else 1
                side, gradient = (pos, sigmoid(-x)) if j == gt else (neg, sigmoid(x))
                side[j] += outer * w * gradient
        rows.append(elements)
    return rows


def seesaw_elements(
    logits, gt_classes, stats, memory, weights, p=0.8, q=2.0, eps=0.01, objectness=True
):
    k = len(stats.image_counts)
    samples = memory.setdefault("class_samples", [0] * k)
    for gt in gt_classes:
        if gt < k:
            samples[gt] += 1
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        classes = row[:k] if objectness else row
        loss = 0.0
        if gt < k:
            probs = [math.exp(x) for x in row_log_softmax(classes)]
            denominator = math.exp(row[gt])
            for j, x in enumerate(classes):
                if j == gt:
                    continue
                s = 1.0
                if j < k:
                    n_j, n_y = max(samples[j], 1), max(samples[gt], 1)
                    s *= (n_j / n_y) ** p if n_j < n_y else 1
                    excess = probs[j] / max(probs[gt], eps)
                    s *= excess**q if excess > 1 else 1
                denominator += s * math.exp(x)
            loss += math.log(denominator) - row[gt]
        elif not objectness:
            loss -= row_log_softmax(classes)[gt]
        if objectness:
            loss -= row_log_softmax(row[k:])[1 if gt == k else 0]
        rows.append([loss])
    return rows


def move_confusion(logits, gt_classes, memory, k, score, normalise, momentum=0.99):
    """The running confusion of PCB, arXiv:2201.02784: row y is the mean score on objects of y."""
    confusion = memory.setdefault("confusion", [[0.0] * k for _ in range(k)])
    rows = memory.setdefault("confusion_rows", [0] * k)
    for y in range(k):
        scores = [score(row[:k]) for row, gt in zip(logits, gt_classes, strict=True) if gt == y]
        if not scores:
            continue
        for j in range(k):
            mean = math.fsum(row[j] for row in scores) / len(scores)
            confusion[y][j] = momentum * confusion[y][j] + (1 - momentum) * mean
        if normalise:
            total = math.fsum(confusion[y])
            confusion[y] = [x / total for x in confusion[y]]
        rows[y] += len(scores)
    return confusion, rows


def softmax_of(row):
    return [math.exp(x) for x in row_log_softmax(row)]


def pairwise_softmax_elements(logits, gt_classes, stats, memory, weights, alpha=0.4):
    k = len(stats.image_counts)
    confusion, seen = move_confusion(logits, gt_classes, memory, k, softmax_of, True)
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        log_probs = row_log_softmax(row)
        loss = -log_probs[gt]
        if gt < k and min(seen) > 0:
            total = math.fsum(confusion[i][gt] for i in range(k))
            soft = -math.fsum(confusion[j][gt] / total * log_probs[j] for j in range(k))
            loss = (1 - alpha) * loss + alpha * soft
        rows.append([loss])
    return rows


def pairwise_seesaw_elements(logits, gt_classes, stats, memory, weights, alpha=0.4, **options):
    """A soft target is a share of the loss for each class, with the factors of the true one."""
    k = len(stats.image_counts)
    confusion, seen = move_confusion(logits, gt_classes, memory, k, softmax_of, True)
    rows = seesaw_elements(logits, gt_classes, stats, memory, weights, **options)
    samples = memory["class_samples"]
    for elements, row, gt in zip(rows, logits, gt_classes, strict=True):
        if gt == k or min(seen) == 0:
            continue
        classes = row[:k] if options.get("objectness", True) else row
        probs = softmax_of(classes)
        shifted = []
        for j, x in enumerate(classes):
            factor = 1.0
            if j < k and j != gt:
                factor = min(1, max(samples[j], 1) / max(samples[gt], 1)) ** 0.8
                factor *= max(1, probs[j] / max(probs[gt], 0.01)) ** 2
            shifted.append(x + math.log(factor))
        log_probs = row_log_softmax(shifted)
        total = math.fsum(confusion[i][gt] for i in range(k))
        soft = -math.fsum(confusion[j][gt] / total * log_probs[j] for j in range(k))
        elements[0] += alpha * (soft + log_probs[gt])
    return rows


def pairwise_eqlv2_elements(
    logits, gt_classes, stats, memory, weights, share=0.4, gamma=12.0, mu=0.8, alpha=4.0
):
    k = len(stats.image_counts)
    pos = memory.setdefault("pos_grads", [0.0] * k)
    neg = memory.setdefault("neg_grads", [0.0] * k)
    confusion = [list(row) for row in memory.setdefault("confusion", [[0.0] * k] * k)]
    seen = list(memory.setdefault("confusion_rows", [0] * k))
    memory["confusion"] = [list(row) for row in confusion]
    ratio = [p / (n + 1e-10) if n > 0 else 100.0 for p, n in zip(pos, neg, strict=True)]
    neg_weight = [*(sigmoid(gamma * (g - mu)) for g in ratio), 1.0]
    rows = []
    for i, (row, gt) in enumerate(zip(logits, gt_classes, strict=True)):
        elements = []
        for j, x in enumerate(row):
            target = float(j == gt)
            if gt < k and min(seen) > 0:
                target = (1 - share) * target + share * (confusion[j][gt] if j < k else 0)
            w = (1 + alpha * (1 - neg_weight[j])) * target + neg_weight[j] * (1 - target)
            bce = target * binary_cross_entropy(x, True)
            elements.append(w * (bce + (1 - target) * binary_cross_entropy(x, False)))
            if j < k:
                gradient = (weights[i][j] if weights else 1) * w * abs(sigmoid(x) - target)
                pos[j] += gradient * target
                neg[j] += gradient * (1 - target)
        rows.append(elements)
    move_confusion(logits, gt_classes, memory, k, lambda row: [sigmoid(x) for x in row], False)
    return rows


def plain_softmax_with_objectness_elements(logits, gt_classes, stats, memory, weights):
    """Seesaw without its factors."""
    k = len(stats.image_counts)
    rows = []
    for row, gt in zip(logits, gt_classes, strict=True):
        loss = -row_log_softmax(row[k:])[1 if gt == k else 0]
        rows.append([loss - (row_log_softmax(row[:k])[gt] if gt < k else 0)])
    return rows


def inverse_frequency_weights(counts):
    """1 / n_j over their mean."""
    inverse = [1 / max(n, 1) for n in counts]
    return [x * len(counts) / sum(inverse) for x in inverse]


def with_mean_one_over_instances(weights, counts):
    """Each instance's weight is listed, and their mean divides the weights."""
    of_instances = [w for w, n in zip(weights, counts, strict=True) for _ in range(n)]
    return [w * len(of_instances) / math.fsum(of_instances) for w in weights]


def effective_number_weights(counts, beta):
    """The reciprocals of 1 + beta + ... + beta^(n_j - 1), over their mean."""
    inverse = [1 / math.fsum(beta**i for i in range(max(n, 1))) for n in counts]
    return [x * len(counts) / math.fsum(inverse) for x in inverse]
