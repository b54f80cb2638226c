"""Clusters that more than one deleted file says to be its own."""

from array import array
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import UnsupportedError
from imagefs.filesystems.remains import NOBODY, Bits

_LIMIT = 4_000_000  # claims; each takes 40 bytes, twice that while they are compared


class _Claim(NamedTuple):
    start: int
    end: int
    owner: int
    changed: int
    journal: int


class Claims:
    """The clusters that deleted files say to be theirs, each with two ranks of its owner.

    Who had clusters after another has both ranks at least as high, as long as they are kept properly: when
    its record was last changed, and the number of the journal's entry about that. Where they contradict
    each other, or are the same, nobody is believed.
    """

    def __init__(self) -> None:
        self._columns = tuple(array("q") for _ in _Claim._fields)

    def add(self, start: int, end: int, owner: int, changed: int = 0, journal: int = 0) -> None:
        """Add clusters from ``start`` to before ``end``; UnsupportedError when there are too many."""
        if len(self._columns[0]) >= _LIMIT:
            raise UnsupportedError(f"more than {_LIMIT:,} pieces of deleted files are too many to compare")
        for column, value in zip(self._columns, (start, end, owner, changed, journal), strict=True):
            column.append(value)

    def contested(self) -> "Contested":
        """Return the clusters that several owners claim."""
        columns = np.array([np.frombuffer(column, np.int64) for column in self._columns if column], np.int64)
        if not columns.size:
            return Contested([])
        columns = columns[:, np.argsort(columns[0], kind="stable")]
        reached = np.maximum.accumulate(columns[1])  # the furthest end of all claims up to each
        overlaps = np.zeros(columns.shape[1], np.bool_)
        overlaps[1:] = columns[0, 1:] < reached[:-1]
        overlaps[:-1] |= columns[0, 1:] < columns[1, :-1]
        return Contested(_merged(_sweep([_Claim(*claim) for claim in columns[:, overlaps].T.tolist()])))


class Contested:
    """Runs of clusters with several claims, and whose claim is the last."""

    def __init__(self, runs: list[tuple[int, int, int]]) -> None:
        self._runs: NDArray[np.int64] = np.array(runs, np.int64).reshape(-1, 3)

    def exclude(self, owner: int, first: int, free: Bits) -> None:
        """Clear the bits of the clusters from ``first`` on that are not ``owner``'s, if anybody's."""
        low = int(np.searchsorted(self._runs[:, 1], first, "right"))
        high = int(np.searchsorted(self._runs[:, 0], first + len(free), "left"))
        for start, end, winner in self._runs[low:high].tolist():
            if winner != owner or winner == NOBODY:
                free[max(0, start - first) : max(0, end - first)] = False


def _sweep(claims: list[_Claim]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, last owner) of what several owners claim; the claims ascend by their starts."""
    points = sorted({claim.start for claim in claims} | {claim.end for claim in claims})
    open_claims: dict[int, int] = {}  # how many of each owner
    owners: dict[tuple[int, int], set[int]] = {}  # by their ranks
    ends: list[tuple[int, int]] = []
    by_changed: list[tuple[int, int, int]] = []
    by_journal: list[tuple[int, int]] = []
    waiting = 0
    for point, following in pairwise(points):
        while ends and ends[0][0] <= point:
            claim = claims[heappop(ends)[1]]
            open_claims[claim.owner] -= 1
            if not open_claims[claim.owner]:
                del open_claims[claim.owner]
                owners[claim.changed, claim.journal].discard(claim.owner)
        while waiting < len(claims) and claims[waiting].start <= point:
            claim = claims[waiting]
            heappush(ends, (claim.end, waiting))
            heappush(by_changed, (-claim.changed, -claim.journal, -claim.end))
            heappush(by_journal, (-claim.journal, -claim.end))
            open_claims[claim.owner] = open_claims.get(claim.owner, 0) + 1
            owners.setdefault((claim.changed, claim.journal), set()).add(claim.owner)
            waiting += 1
        if len(open_claims) > 1:
            while -by_changed[0][2] <= point:
                heappop(by_changed)
            while -by_journal[0][1] <= point:
                heappop(by_journal)
            changed, journal = -by_changed[0][0], -by_changed[0][1]
            last = owners[changed, journal]
            is_last = len(last) == 1 and journal == -by_journal[0][0]
            yield point, following, next(iter(last)) if is_last else NOBODY


def _merged(runs: Iterator[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    merged: list[tuple[int, int, int]] = []
    for start, end, owner in runs:
        if merged and merged[-1][1:] == (start, owner):
            merged[-1] = (merged[-1][0], end, owner)
        else:
            merged.append((start, end, owner))
    return merged
