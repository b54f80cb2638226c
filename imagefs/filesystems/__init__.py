"""File systems inside a volume: what they are called, and their directories, files and links."""

from imagefs.filesystems.base import (
    FileSystem,
    GoneError,
    RecordedTimes,
    Recovery,
    RecoveryState,
    Stream,
    VolumeKey,
    VolumeOptions,
)
from imagefs.filesystems.detect import open_deleted, open_file_system

__all__ = [
    "FileSystem",
    "GoneError",
    "RecordedTimes",
    "Recovery",
    "RecoveryState",
    "Stream",
    "VolumeKey",
    "VolumeOptions",
    "open_deleted",
    "open_file_system",
]
