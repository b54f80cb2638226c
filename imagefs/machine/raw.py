"""What readers of raw devices have in common on all systems: aligned memory, and finding what fails."""

import mmap
import threading
from collections.abc import Callable


class AlignedMemory(threading.local):
    """Memory that starts on a page; each thread has its own."""

    _memory = memoryview(b"")

    def take(self, length: int) -> memoryview:
        """Return so many bytes of it, with whatever is in them, until this thread asks again."""
        if len(self._memory) < length:
            self._memory = memoryview(mmap.mmap(-1, length))
        return self._memory[:length]


def failing_unit(offset: int, length: int, unit: int, fails: Callable[[int, int], bool]) -> tuple[int, int]:
    """Return the first unit of a failed range that fails by itself: its offset and length, in bytes.

    ``fails`` tells whether the bytes from a start to an end can't be read. Where no unit fails, the medium
    has come round meanwhile, and the range is returned as it was.
    """
    low, high = offset, offset + length  # all before low can be read, low to high can't
    while low // unit < (high - 1) // unit:
        middle = max((low + high) // 2 // unit, low // unit + 1) * unit
        if fails(low, middle):
            high = middle
        else:
            low = middle
    return (low, high - low) if fails(low, high) else (offset, length)
