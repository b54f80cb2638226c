"""``imagefs boot``: run an image as a machine."""

from pathlib import Path
from typing import Annotated

import typer

from imagefs.cli.common import ImageArgument, PasswordFile, opened, say
from imagefs.serving.machine import BootOptions
from imagefs.serving.machine import boot as run_machine

Disk = Annotated[str, typer.Option("--disk", help="Only this disk, as disk4; else all of the image.")]
Firmware = Annotated[str, typer.Option("--firmware", help="bios, uefi, or auto: as the disk needs.")]
Memory = Annotated[str, typer.Option("--memory", "-m", help="The machine's memory, as 512M or 4G.")]
Cpus = Annotated[int, typer.Option("--cpus", help="The machine's processors.")]
Accel = Annotated[str, typer.Option("--accel", help="kvm, tcg (slow, everywhere), or auto.")]
Network = Annotated[
    bool, typer.Option("--network", help="Let the machine reach the network; else it can't talk to anyone.")
]
Vnc = Annotated[str, typer.Option("--vnc", help="Show its display by VNC at this HOST:PORT or unix:PATH.")]
Serial = Annotated[
    bool,
    typer.Option("--serial", help="Its serial console on this terminal, no display; Ctrl-A X ends it."),
]
KeepOverlay = Annotated[
    Path | None,
    typer.Option("--keep-overlay", help="Keep what the machine writes in this file, or go on with it."),
]


def boot(
    image: ImageArgument,
    disk: Disk = "",
    firmware: Firmware = "auto",
    memory: Memory = "2G",
    cpus: Cpus = 2,
    accel: Accel = "auto",
    network: Network = False,
    vnc: Vnc = "",
    serial: Serial = False,
    keep_overlay: KeepOverlay = None,
    password_file: PasswordFile = None,
) -> None:
    """Start a backup as a virtual machine in qemu. The image stays as it is.

    What the machine writes is gone when it ends, unless it is kept by --keep-overlay. Without --network it
    has no network.

    Example: imagefs boot home-01-01.mrimgx

    Exit codes: 0 the machine was shut down · 2 · 3 · 4 · 5 · 6 overlay refused · 7 qemu failed · 130.
    """
    options = BootOptions(disk, firmware, memory, cpus, accel, network, vnc, serial, keep_overlay)
    with opened(image, password_file) as source:
        run_machine(source, options, say)
