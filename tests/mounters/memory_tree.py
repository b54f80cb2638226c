"""A tree in memory with everything a mount can meet: the contract tests hold the mounts against it."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mounters.tree import (
    Attributes,
    Entry,
    Handle,
    NodeType,
    Tree,
    is_a_directory,
    no_such_attribute,
    not_a_directory,
    not_found,
)

MIB = 1 << 20
SECOND = 10**9
DAMAGE = range(MIB, MIB + 65536)  # offsets in /damaged.bin
MANY = 20_000
VALUES = {  # the extended attributes of /attributes.bin and /dir; the last name cannot be shown
    "user.text": b"text",
    "user.empty": b"",
    "user.binary": bytes(range(256)) * 16,
    "user.largest": b"x" * 65536,
    "user.\udcff": b"not UTF-8",
    "system.ntfs_attrib": b"\x20\0\0\0",
    "user.a\0b": b"",
}
UNLISTED = "system.unlisted"  # told when it is asked for
ODD_NAMES = (
    "\udcff\udc80 not UTF-8",
    "😀 emoji",
    "n" * 255,
    "ü" * 127,
    "two words",
    "line\nbreak",
    "..x",
    "-rf",
    "\\040",
)


class DamagedBlockError(Exception):
    """An error of the tree's own kind: any exception with an errno counts."""

    errno = errno.EIO


def content(seed: int, offset: int, length: int) -> bytes:
    """Return bytes that say where they belong: 64-bit words of position and seed."""
    first, last = offset // 8, -(-(offset + length) // 8)
    words = np.arange(first, last, dtype="<u8") * np.uint64(2654435761) + np.uint64(seed % 65521 << 48)
    start = offset - first * 8
    return words.tobytes()[start : start + length]


@dataclass
class Node:
    attributes: Attributes
    target: str = ""
    children: dict[str, int] = field(default_factory=dict)
    read: Callable[[int, int], bytes] | None = None
    handle_size: int | None = None
    data: range | None = None  # offsets of its data, between two holes
    lost: bool = False  # its attributes cannot be read
    values: dict[str, bytes] = field(default_factory=dict)  # of extended attributes


class MemoryHandle(Handle):
    def __init__(self, node: Node, opened: list[int]) -> None:
        self.size = node.attributes.size if node.handle_size is None else node.handle_size
        self._node = node
        self._opened = opened
        opened.append(node.attributes.inode)

    def read(self, offset: int, length: int) -> bytes:
        assert self._node.read is not None
        return self._node.read(offset, length)

    def next_data(self, offset: int) -> int | None:
        data = self._node.data
        if data is None:
            return super().next_data(offset)
        return max(offset, data.start) if offset < data.stop else None

    def next_hole(self, offset: int) -> int:
        data = self._node.data
        if data is None:
            return super().next_hole(offset)
        return data.stop if offset in data else offset

    def close(self) -> None:
        self._opened.remove(self._node.attributes.inode)


class MemoryTree(Tree):
    """Its root is 5; inode numbers 0 and 1 are files, which no kernel expects."""

    root = 5
    many = MANY

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {5: Node(Attributes(5, NodeType.DIRECTORY, mode=0o755, links=2))}
        self.opened: list[int] = []
        self._next = 100
        self._fill()

    # Filling

    def add(self, parent: int, name: str, node_type: NodeType, **values: int) -> Node:
        inode = values.pop("inode", self._next)
        self._next += 1
        times = {
            "modified": 1_700_000_000 * SECOND + inode * 1_000_003,
            "accessed": 1_600_000_000 * SECOND + 1,
            "changed": -SECOND * 86400 * 365 + 999_999_999,  # 1969
            "created": 1_500_000_000 * SECOND + inode * 1_000_003,
            "uid": 1000 + inode % 7,
            "gid": 2000 + inode % 5,
        }
        mode = 0o755 if node_type is NodeType.DIRECTORY else 0o640
        node = Node(Attributes(inode, node_type, **{"mode": mode, **times, **values}))
        self.nodes[inode] = node
        self.nodes[parent].children[name] = inode
        return node

    def file(self, parent: int, name: str, size: int, **values: int) -> Node:
        node = self.add(parent, name, NodeType.FILE, size=size, **values)
        seed = node.attributes.inode
        node.read = lambda offset, length: content(seed, offset, length)
        return node

    def directory(self, parent: int, name: str) -> int:
        return self.add(parent, name, NodeType.DIRECTORY, links=2).attributes.inode

    def link(self, parent: int, name: str, target: str) -> None:
        self.add(parent, name, NodeType.LINK, size=len(os.fsencode(target)), mode=0o777).target = target

    def _fill(self) -> None:
        root = self.root
        self.file(root, "one.bin", 12_345, inode=1)
        self.file(root, "zero.bin", 777, inode=0)
        self.file(root, "huge number.bin", 4096, inode=2**63)
        self.file(root, "empty", 0)
        self.file(root, "big.bin", 9 * MIB + 123, links=2)
        self.file(root, "cached.bin", 3 * MIB + 1)
        self.file(root, "sparse.bin", 1 << 30, allocated=8192)
        self.file(root, "holes.bin", 3 * MIB).data = range(MIB, 2 * MIB + 100)
        self.file(root, "setuid.bin", 10, mode=0o4751)
        self._fill_faults(root)
        self.file(root, "attributes.bin", 10).values = VALUES
        self.link(root, "link", "dir/sub/leaf.txt")
        self.link(root, "dangling", "nowhere/\udcff")
        self.add(root, "socket", NodeType.OTHER)
        directory = self.directory(root, "dir")
        self.nodes[directory].values = VALUES
        sub = self.directory(directory, "sub")
        self.file(sub, "leaf.txt", 100)
        odd = self.directory(root, "odd")
        for name in ODD_NAMES:
            self.file(odd, name, 1000)
        self.directory(root, "empty directory")
        many = self.directory(root, "many")
        for number in range(self.many):
            self.file(many, f"file {number:05}", number)

    def _fill_faults(self, root: int) -> None:
        damaged = self.file(root, "damaged.bin", 4 * MIB)
        whole = damaged.read
        assert whole is not None

        def read_damaged(offset: int, length: int) -> bytes:
            if offset < DAMAGE.stop and offset + length > DAMAGE.start:
                raise DamagedBlockError(f"block at {DAMAGE.start} has a bad hash")
            return whole(offset, length)

        damaged.read = read_damaged
        self.file(root, "broken.bin", 5000).read = _broken
        self.file(root, "short.bin", 5000).read = lambda offset, length: b"x" * (length - 1)
        self.file(root, "mismatched.bin", 5000).handle_size = 4999
        self.file(root, "strange number.bin", 5000).read = _strange
        self.file(root, "lost.bin", 5000).lost = True
        self._delayed(self.file(root, "slow.bin", 64 * MIB), 2)
        self._delayed(self.file(root, "stuck.bin", MIB), 60)

    def _delayed(self, node: Node, seconds: float) -> None:
        whole = node.read
        assert whole is not None

        def read_late(offset: int, length: int) -> bytes:
            time.sleep(seconds)
            return whole(offset, length)

        node.read = read_late

    # The contract

    def _node(self, inode: int) -> Node:
        return self.nodes[inode]

    def attributes(self, inode: int) -> Attributes:
        node = self._node(inode)
        if node.lost:
            raise DamagedBlockError("its record has a bad hash")
        return node.attributes

    def entries(self, inode: int) -> list[Entry]:
        node = self._node(inode)
        if node.attributes.type is not NodeType.DIRECTORY:
            raise not_a_directory(str(inode))
        return [
            Entry(name, child, self._node(child).attributes.type) for name, child in node.children.items()
        ]

    def lookup(self, inode: int, name: str) -> int:
        node = self._node(inode)
        if node.attributes.type is not NodeType.DIRECTORY:
            raise not_a_directory(str(inode))
        if name not in node.children:
            raise not_found(name)
        return node.children[name]

    def read_link(self, inode: int) -> str:
        return self._node(inode).target

    def open(self, inode: int) -> MemoryHandle:
        node = self._node(inode)
        if node.attributes.type is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        return MemoryHandle(node, self.opened)

    def extended_attributes(self, inode: int) -> list[str]:
        values = self._node(inode).values
        return [*values, "security.capability"] if values else []  # a mount leaves the last one out

    def extended_attribute(self, inode: int, name: str) -> bytes:
        assert not name.startswith("security."), "it is not for the tree to say"
        if name == "user.damaged":
            raise DamagedBlockError("its attribute has a bad hash")
        values = self._node(inode).values
        if name == UNLISTED and values:
            return b"told"
        if name not in values:
            raise no_such_attribute(name)
        return values[name]

    def size(self) -> int:
        return 123 * MIB

    # For tests

    def bytes_of(self, path: str) -> bytes:
        """Return a healthy file's whole content."""
        attributes = self.attributes(self.resolve(path))
        return content(attributes.inode, 0, attributes.size)


def _broken(offset: int, length: int) -> bytes:
    raise RuntimeError("a fault of the tree")


def _strange(offset: int, length: int) -> bytes:
    raise OSError(70_000, "no kernel knows this number")
