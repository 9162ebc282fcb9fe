"""What `retina.ops`, `retina.losses` and `retina.models` should compute: float64 NumPy, written from the papers.

Plain loops where the definition is a loop; nothing is shared with the implementation.
"""

import math

import numpy as np


def as_float64(array):
    return np.asarray(array, np.float64)


# -------------------------------------------------------------------------------------------------------------- boxes


def area(box):
    x1, y1, x2, y2 = as_float64(box)
    return (x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0


def intersection(a, b):
    a, b = as_float64(a), as_float64(b)
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a, b):
    union = area(a) + area(b) - intersection(a, b)
    return intersection(a, b) / union if union > 0 else 0.0


def iou_matrix(first, second):
    return np.array([[iou(a, b) for b in second] for a in first]).reshape(len(first), len(second))


def giou(a, b):
    """arXiv:1902.09630, algorithm 1: IoU minus the share of the hull that the union leaves empty."""
    a, b = as_float64(a), as_float64(b)
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - (hull - union) / hull


def encode(anchor, box, weights=(1.0, 1.0, 1.0, 1.0)):
    """arXiv:1311.2524, appendix C, equations 6 to 9."""
    anchor, box = as_float64(anchor), as_float64(box)
    pw, ph, gw, gh = anchor[2] - anchor[0], anchor[3] - anchor[1], box[2] - box[0], box[3] - box[1]
    px, py, gx, gy = anchor[0] + pw / 2, anchor[1] + ph / 2, box[0] + gw / 2, box[1] + gh / 2
    return np.array([(gx - px) / pw, (gy - py) / ph, math.log(gw / pw), math.log(gh / ph)]) * weights


def decode(anchor, delta, weights=(1.0, 1.0, 1.0, 1.0), max_size_ratio=62.5):
    """arXiv:1311.2524, appendix C, equations 1 to 4; a side grows at most `max_size_ratio` times."""
    anchor, delta = as_float64(anchor), as_float64(delta) / as_float64(weights)
    pw, ph = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = pw * delta[0] + anchor[0] + pw / 2, ph * delta[1] + anchor[1] + ph / 2
    w, h = pw * min(math.exp(delta[2]), max_size_ratio), ph * min(math.exp(delta[3]), max_size_ratio)
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


# ------------------------------------------------------------------------------------------------------------- losses


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -as_float64(x)))


def focal(logits, targets, alpha, gamma):
    """arXiv:1708.02002, equation 5, for y = 1 and y = 0, weighted by a target that may lie between."""
    x, y = as_float64(logits), as_float64(targets)
    log_p, log_q = -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x)
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    return -positive * y * np.exp(gamma * log_q) * log_p - negative * (1.0 - y) * np.exp(gamma * log_p) * log_q


def focal_gradient(logits, targets, alpha, gamma):
    """arXiv:1708.02002, appendix B: y (1 - p_t)^γ (γ p_t log p_t + p_t - 1), with y = ±1."""
    x, y = as_float64(logits), as_float64(targets)

    def of(x_t):
        p, q = sigmoid(x_t), sigmoid(-x_t)
        return q**gamma * (-gamma * p * np.logaddexp(0.0, -x_t) - q)

    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    return positive * y * of(x) - negative * (1.0 - y) * of(-x)


def smooth_l1(prediction, target, beta):
    error = np.abs(as_float64(prediction) - as_float64(target))
    return np.where(error < beta, error**2 / (2 * beta), error - beta / 2)


def huber(prediction, target, delta):
    error = np.abs(as_float64(prediction) - as_float64(target))
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


def central_difference(function, x, step=1e-6):
    """Gradient of a scalar function of an array, by central differences in float64."""
    x = as_float64(x)
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        out[i] = (function(high) - function(low)) / (2 * step)
    return out


# ----------------------------------------------------------------------------------------------- anchors and matching


def anchors(canvas, levels, size, scales, ratios, offset):
    """arXiv:1708.02002, section 4: at each cell of each level, for each ratio, for each scale."""
    out = []
    for level in levels:
        stride = 2**level
        for row in range(math.ceil(canvas[0] / stride)):
            for column in range(math.ceil(canvas[1] / stride)):
                x, y = (column + offset) * stride, (row + offset) * stride
                for ratio in ratios:
                    for scale in scales:
                        side = size * stride * scale
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        out.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(out)


def match(anchor_boxes, boxes, valid, crowd, positive_iou=0.5, negative_iou=0.4, force=False, crowd_overlap=0.5):
    """One image: (row of the box, or -1; whether ignored) of each anchor."""
    rows, ignored = [], []
    real = [g for g in range(len(boxes)) if valid[g] and not crowd[g]]
    crowds = [g for g in range(len(boxes)) if valid[g] and crowd[g]]
    overlaps = [{g: iou(anchor, boxes[g]) for g in real} for anchor in anchor_boxes]
    for anchor, overlap in zip(anchor_boxes, overlaps, strict=True):
        best = max(overlap.values(), default=-1.0)
        row = min(g for g in real if overlap[g] == best) if best >= positive_iou else -1
        inside = any(intersection(anchor, boxes[g]) >= crowd_overlap * area(anchor) for g in crowds)
        rows.append(row)
        ignored.append(row < 0 and (best >= negative_iou or inside))
    for g in real if force == "ties" else []:
        highest = max(overlap[g] for overlap in overlaps)
        for a, overlap in enumerate(overlaps):
            if overlap[g] == highest > 0:
                best = max(overlap.values())
                rows[a], ignored[a] = min(h for h in real if overlap[h] == best), False
    forced = {}
    for g in real if force is True else []:
        a = max(range(len(overlaps)), key=lambda a: (overlaps[a][g], -a))
        if overlaps[a][g] > 0 and (a not in forced or overlaps[a][g] > overlaps[a][forced[a]]):
            forced[a] = g
    for a, g in forced.items():
        rows[a], ignored[a] = g, False
    return np.array(rows), np.array(ignored)


def effective_number(boxes, beta):
    """arXiv:1901.05555, equation 2, as the sum of the proof of proposition 1."""
    return sum(as_float64(beta) ** power for power in range(boxes))


def loss_sums(
    logits,
    deltas,
    anchor_boxes,
    batch,
    alpha=0.25,
    gamma=2.0,
    delta=1 / 9,
    weight=9.0,
    class_weights=(1.0,) * 9,
    **matching,
):
    """Summed focal and weighted Huber loss of a batch, and the number of positives; the focal loss of a positive anchor
    times its class' weight, as arXiv:1901.05555 weighs a sample (section 4.2)."""
    classification, box, positives = 0.0, 0.0, 0
    for i in range(len(logits)):
        fields = [np.asarray(batch[name])[i] for name in ("boxes", "valid", "crowd")]
        rows, ignored = match(anchor_boxes, *fields, **matching)
        for a, row in enumerate(rows):
            if ignored[a]:
                continue
            target, factor = np.zeros(logits.shape[-1]), 1.0
            if row >= 0:
                positives += 1
                target[np.asarray(batch["labels"])[i, row]] = 1.0
                factor = class_weights[np.asarray(batch["labels"])[i, row]]
                goal = encode(anchor_boxes[a], fields[0][row])
                box += weight * huber(deltas[i, a], goal, delta).sum()
            classification += factor * focal(logits[i, a], target, alpha, gamma).sum()
    return classification, box, positives


# ---------------------------------------------------------------------------------------------------------- detection


def nms(boxes, scores, labels, iou_threshold, max_detections):
    """Rows kept by greedy per-class suppression, best first; of equal scores the first row."""
    kept = []
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        rivals = [k for k in kept if labels[k] == labels[row]]
        if scores[row] > -math.inf and all(iou(boxes[k], boxes[row]) <= iou_threshold for k in rivals):
            kept.append(row)
    return kept[:max_detections]


def soft_nms(boxes, scores, labels, threshold, max_detections, iou_threshold=None, sigma=None):
    """arXiv:1704.04503, figure 2: rows by falling score and their scores, lowered linearly (equation 2) above
    `iou_threshold` or by the Gaussian of `sigma` (equation 3); scores at or below the threshold go."""
    left = {row: float(score) for row, score in enumerate(scores) if score > threshold}
    rows, lowered = [], []
    while left and len(rows) < max_detections:
        best = max(left, key=lambda row: (left[row], -row))
        rows.append(best)
        lowered.append(left.pop(best))
        for row in [row for row in left if labels[row] == labels[best]]:
            overlap = iou(boxes[best], boxes[row])
            if sigma is not None:
                left[row] *= math.exp(-(overlap**2) / sigma)
            elif overlap > iou_threshold:
                left[row] *= 1 - overlap
        left = {row: score for row, score in left.items() if score > threshold}
    return rows, lowered


def detect(logits, deltas, levels, size, scale, threshold, candidates, nms_iou, max_detections, soft=None, clip=True):
    """One image: boxes, scores and labels by arXiv:1708.02002, section 4, from a flat sort of each level's pairs.

    `soft` are the arguments of `soft_nms`, `clip` is whether boxes are cut to the image before suppression.
    """
    boxes, scores, labels = [], [], []
    start = 0
    for level in levels:
        level_logits = as_float64(logits[start : start + len(level)])
        flat = level_logits.ravel()
        order = sorted(range(flat.size), key=lambda i: (-flat[i], i))[:candidates]
        for pair in order:
            a, k = divmod(pair, level_logits.shape[1])
            if sigmoid(flat[pair]) > threshold:
                box = decode(level[a], deltas[start + a])
                boxes.append(np.clip(box, 0.0, [size[1], size[0], size[1], size[0]]) if clip else box)
                scores.append(flat[pair])
                labels.append(k)
        start += len(level)
    if soft is None:
        kept = nms(boxes, scores, labels, nms_iou, max_detections)
        shown = sigmoid(scores)[kept]
    else:
        kept, shown = soft_nms(boxes, sigmoid(scores), labels, threshold, max_detections, **soft)
    boxes = np.array(boxes).reshape(-1, 4)[kept] / [scale[1], scale[0], scale[1], scale[0]]
    return boxes, np.array(shown), np.array(labels, int)[kept]
