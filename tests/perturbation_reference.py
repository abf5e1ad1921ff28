"""TIS, ViT-CX and attention flow written out slowly in NumPy, float64; shares no code with `vitrail`."""

import networkx
import numpy as np


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
