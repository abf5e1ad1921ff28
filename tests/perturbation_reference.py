"""TIS, ViT-CX and attention flow written out slowly in NumPy, float64; shares no code with `vitrail`."""

import networkx
import numpy as np
import scipy.optimize


def flow_map(layers: list[np.ndarray], readout: np.ndarray) -> np.ndarray:
    """The flow to each input token by networkx on the whole graph, divided by their sum."""
    network = networkx.DiGraph()
    for token, weight in enumerate(readout):
        network.add_edge("source", (len(layers), token), capacity=float(weight * layers[-1][token].sum()))
    for level, layer in enumerate(layers):
        for f, t in np.ndindex(*layer.shape):
            network.add_edge((level + 1, f), (level, t), capacity=float(layer[f, t]))
    flows = [networkx.maximum_flow_value(network, "source", (0, sink)) for sink in range(layers[0].shape[1])]
    return np.array(flows) / np.sum(flows)


def k_means(points: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    """Lloyd's iterations; a centroid without points stays where it is."""
    centroids = centroids.copy()
    for _ in range(iterations):
        nearest = [int(np.argmin([np.sum((p - c) ** 2) for c in centroids])) for p in points]
        for k in range(len(centroids)):
            mine = [p for p, n in zip(points, nearest, strict=True) if n == k]
            if mine:
                centroids[k] = np.mean(mine, axis=0)
    return centroids


def tis_map(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Σ s m / Σ m, patch by patch."""
    values = []
    for j in range(masks.shape[1]):
        seen = [s for s, m in zip(scores, masks, strict=True) if m[j]]
        values.append(np.mean(seen) if seen else np.mean(scores))
    return np.array(values)


def complete_linkage(vectors: np.ndarray, threshold: float) -> list[set[int]]:
    """Clusters merged, nearest first, as long as their farthest members are closer than the threshold."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    clusters = [{i} for i in range(len(vectors))]
    while len(clusters) > 1:
        pairs = [(max(distance[i, j] for i in a for j in b), x, y) for x, a in enumerate(clusters)
                 for y, b in enumerate(clusters) if x < y]  # fmt: skip
        nearest, x, y = min(pairs)
        if nearest >= threshold:
            break
        clusters[x] |= clusters.pop(y)
    return clusters


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def mda_map(score, blurred: np.ndarray, image: np.ndarray, cells: list, prior: np.ndarray, tried: int, until: float):
    """MDA by hand: `score` of a picture, `cells` the pixels (boolean) of each patch, `prior` their first order."""
    ranked = [int(p) for p in np.argsort(-prior, kind="stable")]

    def laid(under: np.ndarray, patches) -> np.ndarray:
        picture = under.copy()
        for p in patches:
            picture[:, cells[p]] = image[:, cells[p]]
        return picture

    front: list[int] = []
    blank, whole = score(blurred), score(image)
    while len(front) < len(cells):
        left = [p for p in ranked if p not in front][:tried]
        values = [score(laid(blurred, [*front, p])) for p in left]
        front.append(left[int(np.argmax(values))])
        if max(values) - blank >= until * abs(whole - blank):
            break
    nothing, back = np.zeros_like(image), []
    while len(front) + len(back) < len(cells):
        left = [p for p in reversed(ranked) if p not in front and p not in back][:tried]
        values = [score(laid(nothing, [*back, p])) for p in left]
        back.append(left[int(np.argmin(values))])
    order = front + back[::-1]
    n = len(order)
    inserted = [score(laid(blurred, order[:k])) for k in range(n + 1)]
    deleted = [score(laid(nothing, order[k:])) for k in range(n + 1)]
    rising = [(v - inserted[0]) / abs(inserted[-1] - inserted[0]) for v in inserted]
    falling = [(v - deleted[-1]) / abs(deleted[0] - deleted[-1]) for v in deleted]
    rising, falling = np.maximum.accumulate(np.clip(rising, 0, 1)), np.minimum.accumulate(np.clip(falling, 0, 1))
    curve = falling_curve((1 - rising + falling) / 2)
    sizes = np.zeros(n)
    for k in range(1, n + 1):
        sizes[k - 1] = (curve[k - 1] - curve[k]) * (1 / cells[0].sum() + (n - k) / n)
    result = np.zeros(n)
    for k, p in enumerate(order):
        result[p] = sizes[k] + 1e-6 * sizes.max() * (n - k - 1) / n
    return result


def falling_curve(values: np.ndarray) -> np.ndarray:
    """The nearest convex curve with the same ends that stays above the last value, by a general solver."""
    n = len(values)
    bends = np.zeros((n - 2, n))
    for k in range(n - 2):
        bends[k, k : k + 3] = 1, -2, 1
    ends = np.zeros((2, n))
    ends[0, 0] = ends[1, -1] = 1
    fixed = scipy.optimize.LinearConstraint(ends, values[[0, -1]], values[[0, -1]])
    convex = scipy.optimize.LinearConstraint(np.vstack([bends, np.eye(n)]), np.r_[np.zeros(n - 2), np.full(n, values[-1])], np.inf)  # fmt: skip  # noqa: E501
    found = scipy.optimize.minimize(
        lambda f: np.sum((f - values) ** 2),
        np.linspace(values[0], values[-1], n),
        jac=lambda f: 2 * (f - values),
        constraints=[fixed, convex],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return found.x
