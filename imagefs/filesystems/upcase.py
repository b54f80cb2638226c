"""Names without regard to case, as the file systems that ignore it compare them."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache

from imagefs.filesystems.names import plain_name

_UNITS = 1 << 16


class UpCase:
    """The upper case of each UTF-16 unit; what is beyond the first 65,536 characters has none."""

    def __init__(self, table: str) -> None:
        if len(table) != _UNITS:
            raise ValueError(f"an up-case table of {len(table)} characters")
        self._table = table

    def fold(self, text: str) -> str:
        """Return a text in upper case; two names with the same are one where case is ignored."""
        return text.translate(self._table)  # an IndexError of the table leaves a character as it is

    def key(self, text: str) -> tuple[bytes, bytes]:
        """Return what NTFS sorts a name by: first without case, then with it, unit by unit.

        ``text`` has lone surrogates as they are, not escaped.
        """
        exact = text.encode("utf-16-be", "surrogatepass")
        return self.fold(text).encode("utf-16-be", "surrogatepass"), exact

    def is_sensible(self) -> bool:
        """Tell whether this is a table that a volume can have: of ASCII the letters alone change."""
        ascii_ = "".join(map(chr, range(128)))
        return self.fold(ascii_) == ascii_.upper() and "\0" not in self._table[1:]


def fold_names(upcase: UpCase, names: Iterable[str]) -> dict[str, str]:
    """Return the name that stands for each folded one; of several the first by their UTF-16 units."""
    known = list(names)
    found: dict[str, str] = {}
    for folded, name in zip(upcase.fold("\0".join(known)).split("\0"), known, strict=bool(known)):
        other = found.setdefault(folded, name)
        if other is not name and _order(name) < _order(other):
            found[folded] = name
    return found


def _order(name: str) -> bytes:
    with suppress(UnicodeError):  # bytes that were never UTF-16, of an 8.3 name
        name = plain_name(name)
    return name.encode("utf-16-be", "surrogatepass")


@cache
def unicode_upcase() -> UpCase:
    """Return the upper case of Unicode where it is one character of the same plane."""
    return UpCase("".join(_upper(chr(unit)) for unit in range(_UNITS)))


def _upper(character: str) -> str:
    upper = character.upper()
    return upper if len(upper) == 1 and ord(upper) < _UNITS else character
