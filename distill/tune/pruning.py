"""Runs that lag behind are ended early, when a sweep asks for it: Optuna's median rule."""

from collections.abc import Mapping
from pathlib import Path

from distill.tune.graph import Graph, Leaf, Node
from distill.tune.progress import Progress
from distill.tune.store import DONE, Store
from distill.tune.study import LOWER_IS_BETTER, lags


class Pruner:
    """Compares a run with those of the same method, task and stage that have ended."""

    def __init__(self, rule: Mapping[str, int] | None, metric: str | None, out: Path):
        self.rule, self.metric, self.out = rule, metric, out
        self._asked: dict[str, int] = {}  # run -> evaluations that were judged

    def ends(self, node: Node, progress: Progress, graph: Graph, store: Store) -> bool:
        """Whether to end a run now. Asked once for each of its evaluations."""
        if self.rule is None or len(progress.curve) <= self._asked.get(node.key, 0):
            return False
        self._asked[node.key] = len(progress.curve)
        others = self._others(node, graph, store)
        return lags(
            progress.curve,
            others,
            lower_is_better=(self.metric or "") in LOWER_IS_BETTER,
            startup=self.rule["startup"],
            warmup=self.rule["warmup"],
        )

    def _others(self, node: Node, graph: Graph, store: Store) -> list[list[float]]:
        """Scores of the last stages of the same method on the same task."""
        mine = [leaf for leaf in graph.leaves if leaf.stages[-1] == node.key]
        if not mine:
            return []
        rows, curves = store.rows(), []
        for key in dict.fromkeys(leaf.stages[-1] for leaf in graph.leaves if _same(leaf, mine[0])):
            if key != node.key and rows[key].state == DONE:
                folder = self.out / "runs" / graph.nodes[key].folder
                progress = Progress(folder, self.out / "logs" / "none", self.metric)
                progress.read_metrics()
                if progress.curve:
                    curves.append(progress.curve)
        return curves


def _same(one: Leaf, other: Leaf) -> bool:
    return (one.method, one.task) == (other.method, other.task)
