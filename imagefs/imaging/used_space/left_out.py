"""What of a volume is left out on purpose."""

from typing import NamedTuple, Self

import numpy as np

from imagefs.imaging.used_space.cluster_runs import NO_RUNS, Runs, union


class LeftOut(NamedTuple):
    """Paths of files, and the clusters of their contents, in runs (start, end)."""

    paths: tuple[str, ...] = ()
    clusters: Runs = NO_RUNS

    def __add__(self, other: "LeftOut") -> Self:  # type: ignore[override]
        """Return both, a path that is in both once."""
        paths = dict.fromkeys([*self.paths, *other.paths])
        return type(self)(tuple(paths), union(np.concatenate([self.clusters, other.clusters])))
