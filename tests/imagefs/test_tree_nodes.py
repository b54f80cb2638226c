"""How the tree renumbers what file systems tell of their nodes."""

from dataclasses import fields, replace

from imagefs.tree import _with_inode
from mounters.tree import Attributes, NodeType


def test_all_attributes_are_kept() -> None:
    values = range(10, 10 + len(fields(Attributes)) - 2)
    known = Attributes(5, NodeType.LINK, *values)
    assert _with_inode(known, 7) == replace(known, inode=7)
