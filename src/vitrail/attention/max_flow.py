"""Maximum flow through layers of attention: from the readout at the top to each input token, exactly.

The graph: a source, the tokens of every layer, and below them the one input token asked about. The edge from output
token f of a layer to its input token t carries at most C[f, t]; the source feeds token q of the top with at most
r_q Σ_t C[q, t], r being the readout (which constrains nothing for a class token: r = 1 at one token).

One flow for each of N tokens through some hundred thousand edges is slow, and mostly needless. The flow to token j can
be no larger than what leaves the source, nor than what enters j (two cuts). A flow as large as the smaller of the two
is looked for by a short way: what j takes in is pulled up to a middle layer, each token's demand shared over its edges
in proportion to their capacities; what the source gives is pushed down to it in the same way; and a solver connects
the two through that one layer. Where it connects all, both cuts are tight and the value is known. Only where it does
not is the whole graph solved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32
from numpy import ndarray

__all__ = ["UNITS", "FlowGraph", "flows_to_inputs", "whole_flow"]

# The solver counts in whole numbers up to 2³¹ − 1: the bound of each sink is cut into this number of units.
UNITS = 2**30


@dataclass(frozen=True, eq=False)
class FlowGraph:
    """Capacities of every layer, first to last, rows (layer's output tokens) by columns (its input tokens), and of the
    source's edges to the last layer's output tokens."""

    layers: Sequence[Float64[ndarray, "_ _"]]
    source: Float64[ndarray, " _"]

    def bounds(self) -> Float64[ndarray, " inputs"]:
        """Returns upper bounds of the flows: the smaller of what leaves the source and what enters the token."""
        return np.minimum(self.source.sum(), self.layers[0].sum(axis=0))


def flows_to_inputs(
    graph: FlowGraph, units: int = UNITS, report: Callable[[int, int], object] | None = None
) -> Float64[ndarray, " inputs"]:
    """Returns the maximum flow from the source to each input token, to within N/units of its bound.

    `report` is called with (tokens done, tokens) after each.

    Example:
        >>> layer = np.array([[0.5, 0.5], [0.25, 0.75]])
        >>> flows_to_inputs(FlowGraph([layer, layer], np.array([1.0, 0.0]))).round(6)
        array([0.75, 1.  ])
    """
    bounds = graph.bounds()
    count = len(bounds)
    middle = len(graph.layers) // 2
    short = _ShortWay(graph, middle, units) if middle > 0 else None
    whole = None
    flows = np.zeros(count)
    for sink in range(count):
        if bounds[sink] > 0:
            if short is not None and short.reaches(sink):
                flows[sink] = bounds[sink]
            else:
                whole = whole or _WholeGraph(graph, units)
                flows[sink] = whole.flow(sink)
        if report is not None:
            report(sink + 1, count)
    return flows


def whole_flow(graph: FlowGraph, sink: int, units: int = UNITS) -> float:
    """Returns the maximum flow from the source to one input token, by the solver on the whole graph."""
    return _WholeGraph(graph, units).flow(sink) if graph.bounds()[sink] > 0 else 0.0


class _Network:
    """A graph for the solver: node 0 the source, then layers of nodes from top to bottom, last the sink.

    Its edges are given as blocks of capacities, source first; edges that can carry nothing are left out.
    """

    def __init__(self, blocks: Sequence[Float64[ndarray, "_ _"]]) -> None:
        self.sizes = [block.shape[0] for block in blocks] + [1]
        first = np.cumsum([0, *self.sizes])
        self.nodes = int(first[-1])
        starts, ends, values = [], [], []
        for number, block in enumerate(blocks):
            f, t = np.nonzero(block)
            starts.append(first[number] + f)
            ends.append(first[number + 1] + t)
            values.append(block[f, t])
        self.capacities = np.concatenate(values)
        self.ends = np.concatenate(ends).astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(np.concatenate(starts), minlength=self.nodes))])

    def flow(self, scale: float, largest: int) -> int:
        """The maximum flow in units, `scale` of them to one; no edge needs to carry more than `largest`."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow

        whole = self.whole(self.capacities, scale, largest)
        graph = csr_array((whole, self.ends, self.starts.astype(np.int32)), shape=(self.nodes, self.nodes))
        return int(maximum_flow(graph, 0, self.nodes - 1, method="dinic").flow_value)

    @staticmethod
    def whole(capacities: Float64[ndarray, " edges"], scale: float, largest: int) -> Int32[ndarray, " edges"]:
        return np.minimum(np.rint(capacities * scale), largest).astype(np.int32)


class _WholeGraph:
    """The solver on all layers, for one sink after another."""

    def __init__(self, graph: FlowGraph, units: int) -> None:
        self.graph, self.units, self.bounds = graph, units, graph.bounds()

    def flow(self, sink: int) -> float:
        last = self.graph.layers[0][:, sink : sink + 1]
        network = _Network([self.graph.source[None], *reversed(self.graph.layers[1:]), last])
        scale = self.units / self.bounds[sink]
        return min(network.flow(scale, self.units) / scale, float(self.bounds[sink]))


class _ShortWay:
    """A flow as large as the bound, looked for through one middle layer for one sink after another."""

    def __init__(self, graph: FlowGraph, middle: int, units: int) -> None:
        self.graph, self.units, self.bounds = graph, units, graph.bounds()
        self.middle = graph.layers[middle]
        self.given = push_down(graph, middle)
        self.wanted, self.feasible = pull_up(graph, middle)

    def reaches(self, sink: int) -> bool:
        bound = self.bounds[sink]
        # A part in 10¹² is the rounding of the sums that both ends are.
        if not self.feasible[sink] or self.given.sum() < bound * (1 - 1e-12):
            return False
        wanted = self.wanted[:, sink]
        network = _Network([self.given[None], self.middle, wanted[:, None]])
        scale = self.units / bound
        slack = len(self.given) + len(wanted)  # each of the edges that are cut is rounded by half a unit
        return network.flow(scale, self.units) >= self.units - slack


def push_down(graph: FlowGraph, until: int) -> Float64[ndarray, " tokens"]:
    """Returns what the output tokens of layer `until` can receive at once, each token above dividing what it has."""
    given = graph.source
    for layer in reversed(graph.layers[until + 1 :]):
        sums = layer.sum(axis=1)
        given = np.divide(np.minimum(given, sums), sums, out=np.zeros_like(sums), where=sums > 0) @ layer
    return given


def pull_up(graph: FlowGraph, until: int) -> tuple[Float64[ndarray, "tokens sinks"], Bool[ndarray, " sinks"]]:
    """Returns what the input tokens of layer `until` need for each sink to reach its bound, and whether the layers
    between can carry it.
    """
    first, bounds = graph.layers[0], graph.bounds()
    sums = first.sum(axis=0)
    wanted = first * np.divide(bounds, sums, out=np.zeros_like(sums), where=sums > 0)
    feasible = np.ones(len(bounds), dtype=bool)
    for layer in graph.layers[1:until]:
        sums = layer.sum(axis=0)
        feasible &= (wanted <= sums[:, None]).all(axis=0)
        wanted = layer @ np.divide(wanted, sums[:, None], out=np.zeros_like(wanted), where=sums[:, None] > 0)
    return wanted, feasible
