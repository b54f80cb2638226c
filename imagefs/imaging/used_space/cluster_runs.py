"""Runs (start, end) as arrays of shape (n, 2): made of bits, clipped, merged, held against one another."""

import numpy as np
from numpy.typing import NDArray

Runs = NDArray[np.int64]

NO_RUNS: Runs = np.empty((0, 2), np.int64)


def runs_of(bits: NDArray[np.bool_]) -> Runs:
    """Return the runs of True, counted from the array's first item."""
    if not bits.any():
        return NO_RUNS
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    ends: tuple[list[int], list[int]] = ([0] if bits[0] else [], [len(bits)] if bits[-1] else [])
    return np.concatenate([ends[0], edges, ends[1]]).astype(np.int64).reshape(-1, 2)


def clip_and_merge(runs: Runs, start: int, end: int) -> Runs:
    """Return ascending runs that don't overlap, clipped to a window, neighbours joined."""
    clipped = np.clip(runs, start, end)
    clipped = clipped[clipped[:, 0] < clipped[:, 1]]
    if not len(clipped):
        return NO_RUNS
    is_edge = np.concatenate([[True], clipped[1:, 0] != clipped[:-1, 1], [True]])
    return np.stack([clipped[is_edge[:-1], 0], clipped[is_edge[1:], 1]], axis=1)


def union(runs: Runs) -> Runs:
    """Return runs in any order, overlapping or not, as ascending ones that neither overlap nor touch."""
    runs = runs[runs[:, 0] < runs[:, 1]]
    if len(runs) < 2:
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(runs[:, 1])
    is_first = np.concatenate([[True], runs[1:, 0] > reach[:-1]])
    return np.stack([runs[is_first, 0], reach[np.concatenate([is_first[1:], [True]])]], axis=1)


def subtract(runs: Runs, others: Runs) -> Runs:
    """Return what of ``runs`` lies in none of ``others``; both in any order."""
    runs, others = union(runs), union(others)
    if not len(runs) or not len(others):
        return runs
    # The parts between the edges of both are each wholly inside or outside of either.
    edges = np.unique(np.concatenate([runs.ravel(), others.ravel()]))
    starts, ends = edges[:-1], edges[1:]
    kept = _inside(runs, starts) & ~_inside(others, starts)
    return union(np.stack([starts[kept], ends[kept]], axis=1))


def _inside(runs: Runs, points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which points lie in one of some ascending runs that don't overlap."""
    at = np.searchsorted(runs[:, 0], points, side="right") - 1
    inside: NDArray[np.bool_] = (at >= 0) & (points < runs[np.maximum(at, 0), 1])
    return inside


def parts_inside(runs: Runs, first: int, count: int) -> Runs:
    """Return the parts of some runs that lie in ``count`` items from ``first``, counted from there.

    The runs are ascending and don't overlap.
    """
    start = np.searchsorted(runs[:, 1], first, side="right")
    end = np.searchsorted(runs[:, 0], first + count, side="left")
    return np.clip(runs[start:end] - first, 0, count)


def mark(runs: Runs, count: int) -> NDArray[np.bool_]:
    """Return ``count`` items, True where a run covers them; the runs lie inside, in any order."""
    depth = np.zeros(count + 1, np.int64)
    np.add.at(depth, runs[:, 0], 1)
    np.add.at(depth, runs[:, 1], -1)
    marked: NDArray[np.bool_] = np.cumsum(depth[:-1]) > 0
    return marked
