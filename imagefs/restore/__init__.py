"""Getting data back: disks and partitions of images, or of other disks, written to devices and files."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagefs.restore.job import RestoreJob, clone, plan_restore, restore
    from imagefs.restore.options import RestoreOptions, RestoreReport

__all__ = ["RestoreJob", "RestoreOptions", "RestoreReport", "clone", "plan_restore", "restore"]


def __getattr__(name: str) -> Any:
    """Load what restores when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imagefs.restore import job, options  # noqa: PLC0415

    return getattr(options if name in ("RestoreOptions", "RestoreReport") else job, name)
