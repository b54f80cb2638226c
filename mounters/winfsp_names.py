"""Names as Windows takes them.

What Windows keeps for itself becomes a character of the private use area: U+F000 plus its code, as Cygwin
and the FUSE layer of WinFsp have it ("Forbidden characters in filenames", Cygwin User's Guide,
https://cygwin.com/cygwin-ug-net/using-specialnames.html). Bytes that were no UTF-8, which are surrogate
escapes in a tree, go the same way.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from mounters.winfsp_folding import fold

LONGEST_NAME = 255  # UTF-16 units
_PRIVATE = 0xF000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # for half a surrogate pair: no program could write it
_LONGEST_SUFFIX = 16  # UTF-16 units of a file name extension that is kept when a name is cut

# "Naming Files, Paths, and Namespaces", https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file
_ODD = re.compile(r'[\x00-\x1f"*/:<>?|\\\ud800-\udfff]')
_TRAILING = re.compile(r"[. ]+\Z")
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|com[1-9\u00b9\u00b2\u00b3]|lpt[1-9\u00b9\u00b2\u00b3]|conin\$|conout\$) *(?:\.|\Z)",
    re.IGNORECASE | re.ASCII,
)


def windows_name(name: str) -> str:
    """Return a tree's name as one that every program of Windows can open, at most 255 UTF-16 units long.

    Names that Windows takes are returned as they are. Different names may become one: see
    ``unique_names``.
    """
    if _ODD.search(name):
        name = _ODD.sub(_mapped, name)
    if name[-1:] in (".", " "):
        name = _TRAILING.sub(lambda found: "".join(map(_private, found[0])), name)
    if _DEVICE.match(name):
        name = name[:2] + _private(name[2]) + name[3:]
    return name if len(name) <= LONGEST_NAME // 2 or units(name) <= LONGEST_NAME else _shortened(name)


def units(name: str) -> int:
    """Return how many UTF-16 units a name takes."""
    return len(name) + sum(character > "\uffff" for character in name)


def with_ending(name: str, ending: str) -> str:
    """Return a name with ``ending`` before its extension, cut so that it is not longer than Windows takes."""
    suffix = PurePosixPath(name).suffix
    if units(suffix) > _LONGEST_SUFFIX:
        suffix = ""
    stem = name.removesuffix(suffix)
    room = LONGEST_NAME - units(ending) - units(suffix)
    return cut(stem, room) + ending + suffix


def cut(text: str, room: int) -> str:
    """Return the longest beginning of ``text`` with at most ``room`` UTF-16 units."""
    text = text[:room]
    while units(text) > room:
        text = text[:-1]
    return text


def _mapped(found: re.Match[str]) -> str:
    character = found[0]
    if "\ud800" <= character <= "\udfff":
        byte = ord(character) - 0xDC00
        return chr(_PRIVATE | byte) if 0x80 <= byte <= 0xFF else _REPLACEMENT
    return _private(character)


def _private(character: str) -> str:
    return chr(_PRIVATE | ord(character))


def _shortened(name: str) -> str:
    """Return a name that is too long with a hash of it instead of what does not fit."""
    digest = hashlib.blake2b(name.encode("utf-16-le", "surrogatepass"), digest_size=4).hexdigest()
    return with_ending(name, f"~{digest}")


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names of one directory as Windows takes them, no two of them equal but for case.

    Which of several gets an ending depends on the names alone, not on their order: a name that Windows
    takes as it is comes before one that was changed, then the first in alphabetical order.
    """
    shown = [windows_name(name) for name in names]
    keys = [fold(name) for name in shown]
    taken = set(keys)
    if len(taken) == len(keys):
        return shown
    groups: dict[str, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key, []).append(at)
    for _, group in sorted(item for item in groups.items() if len(item[1]) > 1):
        group.sort(key=lambda at: (shown[at] != names[at], names[at]))
        number = 2
        for at in group[1:]:
            while fold(with_ending(shown[at], f"~{number}")) in taken:
                number += 1
            shown[at] = with_ending(shown[at], f"~{number}")
            taken.add(fold(shown[at]))
    return shown
