"""What the file system of a folder can take."""

import os
import shutil
import sys
from pathlib import Path

LARGEST_FAT_FILE = 4 * 1024 * 1024 * 1024 - 4096  # bytes, a multiple of every sector


def free_space(folder: Path) -> int:
    """Return the bytes that this user may still write in a folder; OSErrors pass."""
    return shutil.disk_usage(folder).free


if sys.platform == "win32":
    from formats.files_windows import file_system_of, stored_size

    def stored_bytes(file: Path) -> int:
        """Return the bytes that a file takes, without its holes; OSErrors pass."""
        return stored_size(file)

    def largest_file(folder: Path) -> int | None:
        """Return the bytes that a file in a folder may have, None where only the space limits it."""
        try:
            kind = file_system_of(folder)
        except OSError:
            return None  # a file that becomes too large is an error that names --split
        return LARGEST_FAT_FILE if kind.upper() in ("FAT", "FAT12", "FAT16", "FAT32") else None

else:
    from imagefs.machine.mounts import read_mounts

    def stored_bytes(file: Path) -> int:
        """Return the bytes that a file takes, without its holes; OSErrors pass."""
        return file.stat().st_blocks * 512

    def largest_file(folder: Path) -> int | None:
        """Return the bytes that a file in a folder may have, None where only the space limits it."""
        try:
            device = folder.stat().st_dev
            mounts = read_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
        except OSError:
            return None  # not Linux: a file that becomes too large is an error that names --split
        number = os.major(device), os.minor(device)
        kinds = {mount.file_system for mount in mounts if mount.number == number}
        return LARGEST_FAT_FILE if kinds & {"vfat", "msdos", "fuse.fusefat"} else None
