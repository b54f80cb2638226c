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


class Made:
    """What a copy has made in folders, to be asked whether a further name finds some of it.

    Numbers of files don't tell that alone: libfuse gives each name a number of its own, and one file may have
    two names.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[Path, str], list[Path]] = {}
        self._all: dict[Path, list[Path]] = {}

    def add(self, path: Path) -> None:
        """Take note of what was made."""
        self._alike.setdefault(_key(path), []).append(path)
        self._all.setdefault(path.parent, []).append(path)

    def other(self, path: Path) -> Path | None:
        """Return what was made under another name and is found by this one; None: nothing is."""
        alike = [made for made in self._alike.get(_key(path), ()) if made.name != path.name]
        made = self._all.get(path.parent, ()) if may_be_short(path.name) else ()
        if not (alike or made) or not os.path.lexists(path):
            return None
        if any(listed.name == path.name for listed in path.parent.iterdir()):
            return None
        return alike[0] if alike else next((other for other in made if _is_same(other, path)), None)


def _key(path: Path) -> tuple[Path, str]:
    return path.parent, may_be_one(path.name)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


class Doubts:
    """Of the files of a copy, those whose names may turn out to be one with another's.

    They are written one after the other, behind all the rest, and each is looked for first.
    """

    def __init__(self, targets: Iterable[Path]) -> None:
        names: dict[tuple[Path, str], Path] = {}
        self._doubted: set[Path] = set()
        for target in targets:
            known = names.setdefault(_key(target), target)
            if known is not target:
                self._doubted |= {known, target}
            if may_be_short(target.name):
                self._doubted.add(target)
        self._folders = {target.parent for target in self._doubted}
        self._made = Made()

    def __contains__(self, target: Path) -> bool:
        return target in self._doubted

    def made(self, target: Path) -> None:
        """Take note of a file that was made."""
        if target.parent in self._folders:
            self._made.add(target)

    def other(self, target: Path) -> Path | None:
        """Return what was made under another name and is found by this one; None: nothing was."""
        return self._made.other(target) if target in self._doubted else None
