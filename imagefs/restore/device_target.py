"""A block device of Linux as a target."""

import sys

assert sys.platform != "win32"

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Self

from imagefs.errors import SourceReadError
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice
from imagefs.restore.target import Target, cannot_open, write_error

_BLKDISCARD, _BLKZEROOUT, _BLKRRPART = 0x1277, 0x127F, 0x125F  # <linux/fs.h>
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


class DeviceTarget(Target):
    """A block device, written past the cache as far as it lets us. ``sector_size`` is its logical one."""

    is_device = True

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd, path, path, os.lseek(fd, 0, os.SEEK_END), fresh=False)
        self.device = devices.require(path)
        self.sector_size = devices.sector_sizes(fd, self.device)[0]
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            self.direct = True

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a block device for writing, so that nobody mounts it meanwhile; raises RefusedError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)
        except OSError as error:
            raise cannot_open(error, path) from error
        try:
            return cls(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def discard(self, offset: int, length: int, *, zeros: bool) -> bool:
        """Give a range back to what stores it; see ``Target``."""
        if super().discard(offset, length, zeros=zeros):
            return True
        return not zeros and self._ask_for_range(_BLKDISCARD, offset, length)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros; see ``Target``."""
        if self.discard(offset, length, zeros=True) or self._ask_for_range(_BLKZEROOUT, offset, length):
            return
        self.write_zeros(offset, length)

    def holes(self, offset: int, length: int) -> bool:
        """Return False: a device can't be asked."""
        del offset, length
        return False

    def _ask_for_range(self, request: int, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._fd, request, struct.pack("=QQ", offset, length))
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise write_error(error, self.path, offset) from error
        return True

    def forget_cached(self) -> None:
        """Have what is read from now on come from the medium, as far as this user may."""
        devices.forget_cached(self._fd)

    def read_table_anew(self) -> bool:
        """Have the kernel see the device's new partitions; False where it can't now."""
        try:
            fcntl.ioctl(self._fd, _BLKRRPART)
        except OSError:  # it is in use, or is no disk whose partitions the kernel looks for
            device = devices.require(self.path)
            _forget_neighbours(device)
            return device.partition is not None or not any(device.partitions())
        return True


def _forget_neighbours(device: BlockDevice) -> None:
    """Drop what is cached of a device's disk and partitions: each has a cache of its own."""
    for other in (device.parent, *device.parent.partitions()):
        if other.number != device.number:
            with suppress(OSError, SourceReadError):
                fd = devices.open_device(other)
                try:
                    devices.forget_cached(fd)
                finally:
                    os.close(fd)
