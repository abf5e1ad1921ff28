"""Maximum flows equal those of networkx on the whole graph, whatever the short way finds."""

import networkx
import numpy as np
import pytest

from vitrail.attention import max_flow
from vitrail.attention.max_flow import FlowGraph, flows_to_inputs, whole_flow


def by_networkx(graph: FlowGraph, sink: int) -> float:
    network = networkx.DiGraph()
    top = len(graph.layers)
    for token, capacity in enumerate(graph.source):
        network.add_edge("source", (top, token), capacity=float(capacity))
    for level, layer in enumerate(graph.layers):
        for f, t in np.ndindex(*layer.shape):
            network.add_edge((level + 1, f), (level, t), capacity=float(layer[f, t]))
    return networkx.maximum_flow_value(network, "source", (0, sink))


def attention_like(rng: np.random.Generator, depth: int, tokens: int) -> list[np.ndarray]:
    layers = rng.dirichlet(np.full(tokens, 0.3), size=(depth, tokens)) + np.eye(tokens)
    return list(layers / layers.sum(-1, keepdims=True))


def gradient_like(rng: np.random.Generator, depth: int, tokens: int) -> list[np.ndarray]:
    return list(np.maximum(rng.standard_normal((depth, tokens, tokens)), 0) ** 3)


def graphs():
    rng = np.random.default_rng(0)
    for kind in (attention_like, gradient_like):
        for depth, tokens in [(1, 4), (2, 5), (3, 6), (5, 5)]:
            for readout in (np.eye(tokens)[0], np.full(tokens, 1 / tokens)):
                layers = kind(rng, depth, tokens)
                yield FlowGraph(layers, readout * layers[-1].sum(1))
    layers = [*attention_like(rng, 2, 5), rng.dirichlet(np.ones(5), size=2)]  # two queries that pool five tokens
    yield FlowGraph(layers, np.array([0.5, 0.5]))


GRAPHS = list(graphs())


@pytest.mark.parametrize("graph", GRAPHS)
def test_flows_are_exact(graph: FlowGraph):
    expected = np.array([by_networkx(graph, sink) for sink in range(graph.layers[0].shape[1])])
    assert np.abs(flows_to_inputs(graph) - expected).max() <= 1e-7 * expected.max()
    assert max(abs(whole_flow(graph, sink) - flow) for sink, flow in enumerate(expected)) <= 1e-7 * expected.max()


def test_the_short_way_is_sure_where_it_says_so_and_not_always():
    said = {True: 0, False: 0}
    for graph in GRAPHS:
        if len(graph.layers) < 2:
            continue
        short = max_flow._ShortWay(graph, len(graph.layers) // 2, max_flow.UNITS)
        for sink, bound in enumerate(graph.bounds()):
            reaches = bound > 0 and short.reaches(sink)
            said[reaches] += 1
            if reaches:
                assert by_networkx(graph, sink) == pytest.approx(bound, rel=1e-7)
    assert min(said.values()) > 10


def test_a_bottleneck_in_the_middle_is_found():
    # One narrow pipe in the middle block: neither cut at the ends is tight, so the whole graph must be solved.
    middle = np.zeros((3, 3))
    middle[0, 0] = 0.1
    graph = FlowGraph([np.full((3, 3), 0.5), middle, np.full((3, 3), 0.5)], np.array([1.5, 0.0, 0.0]))
    assert flows_to_inputs(graph) == pytest.approx([0.1, 0.1, 0.1], rel=1e-6)


def test_what_nothing_reaches_is_zero_and_every_token_is_reported():
    told = []
    layer = np.array([[0.5, 0.0], [0.5, 0.0]])
    flows = flows_to_inputs(FlowGraph([layer, layer], np.array([1.0, 0.0])), report=lambda *step: told.append(step))
    assert flows.tolist() == pytest.approx([0.5, 0.0])
    assert told == [(1, 2), (2, 2)]
