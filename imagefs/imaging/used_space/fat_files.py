"""Files of FAT and exFAT whose contents are left out."""

from collections.abc import Iterable

import numpy as np

from formats.blockreader import BlockReader
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_layout import Geometry
from imagefs.filesystems.runs import Run
from imagefs.imaging.used_space.base import Runs
from imagefs.imaging.used_space.cluster_runs import NO_RUNS, subtract, union
from imagefs.imaging.used_space.left_out import LeftOut
from imagefs.imaging.used_space.patterns import Patterns
from mounters.tree import NodeType


def excluded_files(
    volume: BlockReader, geometry: Geometry, patterns: Iterable[str], system: Runs = NO_RUNS
) -> LeftOut:
    """Return the files that match; a cluster that any other file, directory or ``system`` uses is kept.

    Goes through all directories and the chains of all files. Raises DamagedError where one can't be
    followed: which clusters it uses is not known then.
    """
    fs = FatFileSystem(volume, is_exfat=geometry.kind == "exFAT")
    meant = Patterns(patterns)
    mine: dict[str, Runs] = {}
    theirs = [system, _clusters(fs.places(fs.root), geometry)]
    waiting = [(fs.root, "", False)]
    while waiting:
        folder, path, is_excluded = waiting.pop()
        for entry in fs.entries(folder):
            own = path + entry.name
            is_meant = is_excluded or meant.match(own)
            clusters = _clusters(fs.places(entry.inode), geometry)
            if entry.type is NodeType.DIRECTORY:
                waiting.append((entry.inode, own + "/", is_meant))
            if entry.type is NodeType.FILE and is_meant:
                mine[own] = clusters
            elif len(clusters):
                theirs.append(clusters)
    excluded = union(np.concatenate([NO_RUNS, *mine.values()]))
    left = subtract(excluded, np.concatenate(theirs))
    if len(left) != len(excluded) or (left != excluded).any():
        kept = subtract(excluded, left)
        paths = [path for path, clusters in mine.items() if len(subtract(clusters, kept))]
    else:
        paths = [path for path, clusters in mine.items() if len(clusters)]
    return LeftOut(tuple(paths), left)


def _clusters(runs: Iterable[Run], geometry: Geometry) -> Runs:
    """Return the clusters, from 0 on, of places on the volume, in runs (start, end)."""
    places = [(run.start, run.start + run.length) for run in runs if run.start is not None]
    return (np.array(places, np.int64).reshape(-1, 2) - geometry.cluster_start) // geometry.cluster_size
