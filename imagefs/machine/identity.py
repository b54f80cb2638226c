"""What a disk says of itself, on every system."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """What a disk says of itself; "" where it is not known."""

    description: str
    manufacturer: str
    product: str
    revision: str
    serial: str


UNKNOWN = Identity("", "", "", "", "")
