"""What the deleted files of all file systems have in common."""

from collections.abc import Container

DELETED_ATTRIBUTE = "user.imagefs.deleted"  # its value is a RecoveryState


def free_name(name: str, number: int, taken: Container[str]) -> str:
    """Return the name that a deleted file is shown under: its own, where it can be and is not taken.

    ``number`` is the file's; it is appended until the name is free.
    """
    shown = name.replace("/", "_").replace("\0", "_")
    if shown in ("", ".", ".."):
        shown = f"OrphanFile-{number}"
    while shown in taken:
        shown += f"~{number}"
    return shown
