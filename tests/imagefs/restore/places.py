"""Targets that hold something else: what they had is known, so that what is left of it is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fixtures.content import noise
from fixtures.partition_tables import MIB
from fixtures.tools import run

PART = "start=2048, size=4096\nstart=8192, size=8192"


def noisy(path: Path, size: int, *, table: str = "") -> Path:
    """Make a file of noise, with a partition table of two partitions where a label is named."""
    with path.open("wb") as stream:
        for at in range(0, size, MIB):
            stream.write(noise(77, at, min(MIB, size - at)))
    return partitioned(path, table, PART) if table else path


def partitioned(path: Path, table: str, parts: str) -> Path:
    """Give a file a partition table with sfdisk: a label, and a line for each partition."""
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "always", path,
        stdin=f"label: {table}\n{parts}\n".encode())  # fmt: skip
    return path


def signatures(path: Path) -> set[str]:
    """Return the kinds of all signatures that wipefs finds on a disk, those at its end too."""
    lines = run("wipefs", "--no-act", "--parsable", "--output", "TYPE", path).decode().split("\n")
    return {line for line in lines if line and not line.startswith("#")}


def digest(path: Path) -> str:
    """Return the hash of a file or device."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
