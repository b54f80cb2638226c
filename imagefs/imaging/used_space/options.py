"""What a caller wants of a volume's used space."""

from typing import NamedTuple


class Options(NamedTuple):
    """See ``used_space``."""

    sector_size: int  # bytes, the device's
    exclude: tuple[str, ...]
    exact: bool
    shadows: bool = True


STORED_WHOLE = "all of the volume is stored"
