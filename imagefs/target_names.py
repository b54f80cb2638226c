"""Names that may be one in a folder of the running system, although they are not in the image.

Which ones are, its file system alone knows: by case, by accents written in two ways, by dots or spaces at
the end, as the short name that FAT and NTFS give beside a long one. Here they are only suspected.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# "8.3 filename": what a file system may have made of another name has a number behind a tilde.
_SHORT = re.compile(r"(?=[^.]{1,8}(?:\.[^.]{0,3})?\Z).*~[0-9]")


def may_be_one(name: str) -> str:
    """Return what is equal for all names that some file system could take for this one."""
    if not name.isascii():
        name = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return name.lower().rstrip(". ")


def may_be_short(name: str) -> bool:
    """Whether a name could be found as the short one of a file with another name."""
    return _SHORT.match(name) is not None


def is_same(one: Path, other: Path) -> bool:
    """Whether two names in a folder lead to one file or directory there, and no second name was given to it.

    False as well where one of them is not there.
    """
    try:
        first, second = one.lstat(), other.lstat()
    except OSError:
        return False
    if not os.path.samestat(first, second):
        return False
    return first.st_nlink < 2 or not {one.name, other.name} <= {path.name for path in one.parent.iterdir()}


class Doubts:
    """Of the targets of a copy, those that may turn out to be one with another one.

    They are written one after the other, behind all the rest, and each is looked for first.
    """

    def __init__(self, targets: Iterable[Path]) -> None:
        names: dict[tuple[Path, str], Path] = {}
        self._doubted: set[Path] = set()
        for target in targets:
            known = names.setdefault((target.parent, may_be_one(target.name)), target)
            if known is not target:
                self._doubted |= {known, target}
            if may_be_short(target.name):
                self._doubted.add(target)
        self._folders = {target.parent for target in self._doubted}
        self._made: dict[Path, list[Path]] = {}

    def __contains__(self, target: Path) -> bool:
        return target in self._doubted

    def made(self, target: Path) -> None:
        """Take note of a file that was made."""
        if target.parent in self._folders:
            self._made.setdefault(target.parent, []).append(target)

    def other(self, target: Path) -> Path | None:
        """Return what was made under another name and is found by this one; None: nothing was."""
        if target not in self._doubted or not os.path.lexists(target):
            return None
        for made in self._made.get(target.parent, ()):
            alike = may_be_short(target.name) or may_be_one(made.name) == may_be_one(target.name)
            if alike and made.name != target.name and is_same(made, target):
                return made
        return None
