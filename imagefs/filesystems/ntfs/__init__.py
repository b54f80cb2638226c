"""NTFS, read from its own records; see ``file_system``."""

from imagefs.filesystems.ntfs.file_system import NtfsFileSystem

__all__ = ["NtfsFileSystem"]
