"""Connections to the kernel's FUSE: /dev/fuse, mount(2), and fusermount3 for ordinary users.

Source: linux/fuse.h, mount(2), fusermount3(1), Documentation/filesystems/fuse/fuse.rst of the kernel.
"""

import sys

assert sys.platform != "win32"

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from contextlib import suppress

from mounters.errors import MountError
from mounters.session import MountOptions, mount_label

_DEVICE = "/dev/fuse"
_SUBTYPE = "imagefs"
_READ_ONLY, _NOSUID, _NODEV = 1, 2, 4  # MS_RDONLY, MS_NOSUID, MS_NODEV of linux/mount.h
_DETACH = 2  # MNT_DETACH
_HELPER_TIMEOUT = 30.0  # seconds


def connect(mountpoint: str, options: MountOptions) -> int:
    """Mount, and return the file descriptor that the kernel's requests are read from. Raises MountError."""
    if os.geteuid() == 0:
        return _mount(mountpoint, options)
    return _mount_through_helper(mountpoint, options)


def detach(mountpoint: str) -> None:
    """Take a mount out of the tree of names; what is in use goes on. Does nothing where it is gone."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(mountpoint), _DETACH)
        return
    with suppress(OSError, subprocess.SubprocessError):
        command = [_helper(), "-u", "-z", "-q", "--", mountpoint]
        subprocess.run(command, capture_output=True, timeout=_HELPER_TIMEOUT, check=False)


def _helper() -> str:
    return shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"


def _access(options: MountOptions) -> list[str]:
    # Alone on the mount, a user reads what the image holds whoever owned it; others do not.
    return ["allow_other", "default_permissions"] if options.allow_other else []


def _mount(mountpoint: str, options: MountOptions) -> int:
    """Mount by mount(2), which is for root."""
    device = _open_device(mountpoint)
    try:
        kind = stat.S_IFMT(os.stat(mountpoint).st_mode)  # noqa: PTH116
        data = [f"fd={device}", f"rootmode={kind:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
        library = ctypes.CDLL(None, use_errno=True)
        library.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
        failed = library.mount(
            mount_label(options.source).encode(),
            os.fsencode(mountpoint),
            f"fuse.{_SUBTYPE}".encode(),
            _READ_ONLY | _NOSUID | _NODEV,
            ",".join(data + _access(options)).encode(),
        )
        if failed:
            raise MountError(f"{mountpoint}: cannot mount: {_reason(ctypes.get_errno())}")
    except BaseException:
        os.close(device)
        raise
    return device


def _open_device(mountpoint: str) -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR)
    except OSError as error:
        raise MountError(f"{mountpoint}: cannot open {_DEVICE}: {_reason(error.errno or 0)}") from None


def _reason(number: int) -> str:
    if number == errno.EPERM:
        return (
            "the system does not let this process mount; in a container, start it with "
            "--device /dev/fuse --cap-add SYS_ADMIN"
        )
    if number == errno.ENODEV:
        return "the kernel has no FUSE: load its module (modprobe fuse)"
    return os.strerror(number)


def _mount_through_helper(mountpoint: str, options: MountOptions) -> int:
    """Have fusermount3 mount, and receive the file descriptor from it."""
    label = mount_label(options.source)
    wanted = ["ro", "nosuid", "nodev", f"fsname={label}", f"subtype={_SUBTYPE}", *_access(options)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [_helper(), "-o", ",".join(wanted), "--", mountpoint]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        try:
            done = subprocess.run(
                command,
                pass_fds=(theirs.fileno(),),
                env=environment,
                capture_output=True,
                timeout=_HELPER_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MountError(f"{mountpoint}: cannot mount: {command[0]}: {error}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() or f"{command[0]} says no more"
            raise MountError(f"{mountpoint}: cannot mount: {said}")
        theirs.close()
        _, received, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not received:
        raise MountError(f"{mountpoint}: cannot mount: {command[0]} hands over no connection")
    return received[0]
