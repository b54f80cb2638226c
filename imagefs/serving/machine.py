"""An image as a running machine: qemu, with the image's disks, and all that it writes in overlays."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from formats.container import Disk, Point
from imagefs.errors import UsageError
from imagefs.serving.children import ProgramError, failure_text, find_program, running
from imagefs.serving.exports import chosen_disk, open_overlay, overlay_exports
from imagefs.serving.firmware import (
    boot_disk,
    check_firmware,
    escaped,
    loader_by_name,
    starter_options,
    uefi_options,
)
from imagefs.serving.overlay import Overlay
from imagefs.serving.server import PrivateServer, private_server
from imagefs.source import Source
from imagefs.tree import unreadable_reason
from mounters.export import Export
from mounters.nbd_server import is_loopback, parse_address

ACCELERATORS = ("auto", "kvm", "tcg")
_KVM = "/dev/kvm"
_DESKTOPS = ("darwin", "win32")
_PORTS = 6  # of a SATA controller
_FIRST_VNC = 5900  # the TCP port of VNC's display 0
_VNC_DISPLAYS = 100


@dataclass(frozen=True, slots=True)
class BootOptions:
    """The machine to run an image in."""

    disk: str = ""  # "disk4"; else all
    firmware: str = "auto"  # or bios, uefi
    memory: str = "2G"
    cpus: int = 2
    accel: str = "auto"  # or kvm, tcg
    network: bool = False  # behind this machine's address; else none
    vnc: str = ""  # HOST:PORT
    serial: bool = False  # the machine's serial console on this terminal, and no display
    keep_overlay: Path | None = None  # what is written stays, in this file

    def __post_init__(self) -> None:
        """Refuse what is misspelt; raises UsageError."""
        check_firmware(self.firmware)
        if self.accel not in ACCELERATORS:
            raise UsageError(
                f"there is no accelerator {self.accel!r}", hint=f"one of {', '.join(ACCELERATORS)}"
            )
        if not re.fullmatch(r"[1-9][0-9]*[MG]", self.memory):
            raise UsageError(f"{self.memory!r} is no size of a memory", hint="512M and 4G are")
        if self.cpus < 1:
            raise UsageError("a machine needs a processor")


def boot(source: Source, options: BootOptions, say: Callable[[str], None]) -> None:
    """Run a machine with an image's disks until it ends; the image stays as it is.

    Raises UsageError, RefusedError (the overlay), FormatError, ProgramError when qemu fails, with its
    message, and TargetWriteError when the overlay can't be kept. To be called in the main thread.
    """
    program = find_program("qemu-system-x86_64")
    point, disks = _chosen_disks(source, options)
    first, firmware = boot_disk(disks)
    firmware = options.firmware if options.firmware != "auto" else firmware
    with ExitStack() as owned:
        exports: list[Export] = []
        for disk in disks:
            overlay = owned.enter_context(_overlay(options, point, disk))
            exports.append(overlay_exports(disk, overlay)[0])
        server = owned.enter_context(private_server(exports))
        command = [program, "-name", escaped(f"imagefs {point.path.name}"), *_machine(options)]
        command += _disk_options(server, disks, first, durable=options.keep_overlay is not None)
        command += _console(options, say)
        if firmware == "uefi":
            command += uefi_options(server.folder)
            loader = loader_by_name(disks[first])
            if loader:
                say(f"its firmware knew of {loader}, which a script on a small USB drive starts here")
                command += starter_options(server.folder, loader)
        if firmware == "bios" and any(disk.sector_size != 512 for disk in disks):
            say("a BIOS can't start from a disk of 4096-byte sectors; --firmware uefi may")
        _run(command, options)


def _chosen_disks(source: Source, options: BootOptions) -> tuple[Point, Sequence[Disk]]:
    """Return the disks that the machine gets; raises as ``chosen_disk`` does."""
    if options.disk or options.keep_overlay is not None or source.point is None:
        point, disk = chosen_disk(source, options.disk)
        return point, [disk]
    reason = unreadable_reason(source.point)
    if reason is not None:
        raise reason
    if not source.point.disks:
        raise UsageError("there is no disk in it", path=source.path)
    return source.point, source.point.disks


@contextmanager
def _overlay(options: BootOptions, point: Point, disk: Disk) -> Iterator[Overlay]:
    """Open the overlay to keep, or a temporary one, which is gone however this process ends."""
    if options.keep_overlay is not None:
        with open_overlay(options.keep_overlay, point, disk) as overlay:
            yield overlay
        return
    if sys.platform == "win32":
        with tempfile.TemporaryDirectory(prefix="imagefs-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "overlay"
            with open_overlay(path, point, disk) as overlay:
                with suppress(OSError):  # newer Windows lets go of the name at once
                    path.unlink()
                yield overlay
        return
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=_roomy()) as folder:
        path = Path(folder) / "overlay"
        overlay = open_overlay(path, point, disk)
        path.unlink()
    with overlay:
        yield overlay


def _roomy() -> str:
    """Return a folder for temporary files that may grow large: /tmp is often in memory."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK):  # noqa: S108
        return "/var/tmp"  # noqa: S108
    return tempfile.gettempdir()


# --- qemu's options ---


def _machine(options: BootOptions) -> list[str]:
    command = ["-machine", "q35", "-nodefaults", "-no-user-config", "-cpu", "max"]
    command += ["-m", options.memory, "-smp", str(options.cpus)]
    for accel in _accelerators(options.accel):
        command += ["-accel", accel]
    # A machine that comes back must not talk by itself: to be the one that still runs, to send its mail.
    command += ["-nic", "user,model=e1000e" if options.network else "none"]
    return command


def _accelerators(wanted: str) -> list[str]:
    """Return qemu's accelerators, in the order in which it tries them."""
    kvm = wanted == "kvm" or (wanted == "auto" and os.access(_KVM, os.R_OK | os.W_OK))
    return ["kvm"] * kvm + ["tcg,thread=multi"] * (wanted != "kvm")


def _disk_options(server: PrivateServer, disks: Sequence[Disk], first: int, *, durable: bool) -> list[str]:
    """Return the options of the disks: SATA, for which every system has a driver.

    qemu's SATA disks have sectors of 512 bytes; others become NVMe.
    """
    command = []
    sata = [number for number, disk in enumerate(disks) if disk.sector_size == 512]
    for controller in range(1, -(-len(sata) // _PORTS)):
        command += ["-device", f"ich9-ahci,id=sata{controller}"]
    for number, disk in enumerate(disks):
        node = {
            **server.node(disk.name),
            "node-name": f"node{number}",
            "discard": "unmap",
            "cache": {"direct": False, "no-flush": not durable},
        }
        command += ["-blockdev", json.dumps(node)]
        order = 1 if number == first else 2 + number
        if number in sata:
            controller, port = divmod(sata.index(number), _PORTS)
            bus = f"sata{controller}.{port}" if controller else f"ide.{port}"
            device = f"ide-hd,bus={bus}"
        else:
            size = disk.sector_size
            device = f"nvme,serial=imagefs{number},logical_block_size={size},physical_block_size={size}"
        command += ["-device", f"{device},drive=node{number},bootindex={order}"]
    return command


def _console(options: BootOptions, say: Callable[[str], None]) -> list[str]:
    """Return the options of display, keyboard and serial console; say where the display is."""
    command = ["-device", "VGA", "-device", "qemu-xhci", "-device", "usb-tablet"]
    if options.serial:
        command += ["-chardev", "stdio,id=terminal,mux=on,signal=off"]
        command += ["-serial", "chardev:terminal", "-mon", "chardev=terminal"]
    if options.vnc:
        address = parse_address(options.vnc)
        if not is_loopback(address):
            say(f"whoever reaches {options.vnc} sees and uses the machine")
        return [*command, "-display", "none", "-vnc", _vnc(options.vnc, address.port)]
    if options.serial:
        return [*command, "-display", "none"]
    if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")) or sys.platform in _DESKTOPS:
        return command  # qemu takes what it has: GTK, SDL, Cocoa
    port = _free_port()
    say(f"there is no display here; the machine's is at VNC 127.0.0.1:{port}")
    return [*command, "-display", "none", "-vnc", _vnc(f"127.0.0.1:{port}", port)]


def _vnc(address: str, port: int) -> str:
    """Return an address as qemu takes it, which counts displays; raises UsageError."""
    if address.startswith("unix:"):
        return escaped(address)
    if not address.endswith(f":{port}") or port < _FIRST_VNC:
        raise UsageError(f"{address!r} is no address for VNC", hint="127.0.0.1:5900 is, and unix:PATH")
    return f"{address.removesuffix(f':{port}')}:{port - _FIRST_VNC}"


def _free_port() -> int:
    """Return a port for VNC that nobody on this machine listens at."""
    for port in range(_FIRST_VNC, _FIRST_VNC + _VNC_DISPLAYS):
        with socket.socket() as probe, suppress(OSError):
            if sys.platform != "win32":  # where that would take over a port in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ProgramError(os.strerror(errno.EADDRINUSE), hint="--vnc names another address")


# --- Running it ---


def _run(command: Sequence[str], options: BootOptions) -> None:
    """Run qemu until the machine ends; raises ProgramError with what it said when it fails."""
    stream = None if options.serial else subprocess.DEVNULL
    with tempfile.TemporaryFile() as said:
        with _terminal_kept(), running(command, said, stdin=stream, stdout=stream) as process:
            code = process.wait()
        if code:
            raise ProgramError(failure_text(command[0], code, said))


if sys.platform == "win32":

    @contextmanager
    def _terminal_kept() -> Iterator[None]:
        """Do nothing: qemu leaves consoles as they are."""
        yield

else:
    import termios

    @contextmanager
    def _terminal_kept() -> Iterator[None]:
        """Leave the terminal as it was: qemu changes it, and may be killed."""
        if not sys.stdin.isatty():
            yield
            return
        before = termios.tcgetattr(sys.stdin.fileno())
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
