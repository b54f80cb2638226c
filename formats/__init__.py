"""What the bytes of an image mean. Pure: no devices, no mounting, no user interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from formats import mrimgx
from formats.container import Container
from formats.errors import FormatError, NotAnImageError


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how a file is recognised by its content, and opened."""

    name: str
    probe: Callable[[Path], bool]
    open: Callable[[Path], Container]


FORMATS = (Format("mrimgx", mrimgx.probe, mrimgx.open_file),)


def open_container(path: Path) -> Container:
    """Open an image of any format; headers only. Its content decides, never its name.

    Raises NotAnImageError when no format knows it, other FormatErrors when it can't be understood.
    """
    for known in FORMATS:
        if known.probe(path):
            return known.open(path)
    names = ", ".join(known.name for known in FORMATS)
    raise NotAnImageError(f"not an image of a known format ({names})", path=path)


def open_folder(folder: Path) -> tuple[Sequence[Container], Mapping[Path, FormatError]]:
    """Open every backup set of a folder; headers only.

    Returns the sets in order of their image ids, and the files that look like images but can't be
    understood, each with the reason. Raises ReadError when the folder can't be read.
    """
    return mrimgx.open_folder(folder)
