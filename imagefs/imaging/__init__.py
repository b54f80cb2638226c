"""Making images: what is read, which of it is stored, and how it gets into a set without ever harming it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagefs.imaging.job import backup, discard, resume

__all__ = ["backup", "discard", "resume"]


def __getattr__(name: str) -> Any:
    """Load what makes images when it is asked for: who only reads them imports this package's errors."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imagefs.imaging import job  # noqa: PLC0415

    return getattr(job, name)
