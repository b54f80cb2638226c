"""What a disk holds after the power failed: what was synced, and of the rest whatever chance has written.

As pessimistic as POSIX allows: data lasts by the sync of its file, a name by the sync of its folder. What was
not synced is lost, or kept out of order and in part; names of one folder are kept in the order they came.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tests.imagefs.imaging.faulty_fs import Operation


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: truncated to this length

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending = []

    def survive(self, chance: random.Random, path: Path, written: dict[int, Path]) -> None:
        if id(self) in written:
            path.hardlink_to(written[id(self)])
            return
        written[id(self)] = path
        data = bytearray(self.durable)
        for offset, what in self.pending:
            kept = chance.choice([0.0, 0.5, 1.0])
            if what is None and kept:
                _apply(data, (offset, None))
            elif what is not None and kept:
                _apply(data, (offset, what[: int(len(what) * kept)]))
        path.write_bytes(data)


def _apply(data: bytearray, change: tuple[int, bytes | None]) -> None:
    offset, what = change
    end = offset + len(what or b"")
    data.extend(bytes(max(0, end - len(data))))
    if what is None:
        del data[offset:]
    else:
        data[offset:end] = what


_Entries = dict[str, "_File | _Folder"]


@dataclass
class _Folder:
    now: _Entries = field(default_factory=dict)
    durable: _Entries = field(default_factory=dict)
    pending: list[Callable[[_Entries], Any]] = field(default_factory=list)

    def change(self, what: Callable[[_Entries], Any]) -> None:
        what(self.now)
        self.pending.append(what)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.now), []

    def survive(self, chance: random.Random, path: Path, written: dict[int, Path]) -> None:
        path.mkdir()
        entries = dict(self.durable)
        for what in self.pending[: chance.randint(0, len(self.pending))]:
            what(entries)
        for name, node in entries.items():
            node.survive(chance, path / name, written)


def _folder_of(path: Path) -> _Folder:
    """Return a folder whose contents have lasted."""
    found = _Folder()
    for each in path.iterdir():
        found.now[each.name] = _folder_of(each) if each.is_dir() else _File(bytearray(each.read_bytes()))
    found.sync()
    return found


class PoweredDisk:
    """The state of a disk while operations are done; ``root`` is what it holds at the beginning."""

    def __init__(self, root: Path) -> None:
        self._root = _folder_of(root)

    def fail(self, chance: random.Random, path: Path) -> None:
        """Write what is left after a power failure now."""
        self._root.survive(chance, path, {})

    def do(self, operation: Operation) -> None:
        """Do what a log tells."""
        name, path, *arguments = operation
        parent, own = self._folder(PurePosixPath(path).parent), PurePosixPath(path).name
        if name in ("create", "mkdir"):
            node = _File() if name == "create" else _Folder()
            parent.change(lambda entries: entries.__setitem__(own, node))
        elif name in ("unlink", "rmdir"):
            parent.change(lambda entries: entries.pop(own, None))
        elif name == "rename":
            target = PurePosixPath(arguments[0])
            assert target.parent == PurePosixPath(path).parent
            moved = parent.now[own]

            def rename(entries: _Entries) -> None:
                entries.pop(own, None)
                entries[target.name] = moved

            parent.change(rename)
        elif name == "link":
            target = PurePosixPath(arguments[0])
            linked = parent.now[own]
            self._folder(target.parent).change(lambda entries: entries.__setitem__(target.name, linked))
        elif name == "fsyncdir":
            self._folder(PurePosixPath(path)).sync()
        else:
            file = parent.now[own]
            assert isinstance(file, _File)
            if name == "fsync":
                file.sync()
            else:
                file.pending.append((arguments[0], arguments[1] if name == "write" else None))

    def _folder(self, path: PurePosixPath) -> _Folder:
        found = self._root
        for part in path.parts[1:]:
            node = found.now[part]
            assert isinstance(node, _Folder)
            found = node
        return found
