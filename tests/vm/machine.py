"""A small Debian that runs guest tests as root, with disks and a device mapper of its own.

The root file system is made once by debootstrap and kept; it is the kernel's initramfs, so that the machine
needs no driver to start. The repository and the packages of its environment come as a second archive behind
it. What the guest prints on its serial console is all that comes back.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.tools import find_tool, run, tool_environment

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "vm"
DONE = "guest tests ended with exit code "

# The Debian release whose Python takes the extension modules that are installed here.
_RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
_PACKAGES = "python3,lvm2,thin-provisioning-tools,e2fsprogs,kmod,udev,mount,util-linux,fdisk,dmsetup,mdadm"
_KERNEL = "linux-image-cloud-amd64"
_LEFT_OUT = (
    "mypy",
    "mypyc",
    "*__mypyc*",
    "ruff*",
    "pip",
    "pip-*",
    "setuptools*",
    "virtualenv*",
    "__pycache__",
)
_MIB = 1 << 20
_DISK_SIZES = (512 * _MIB, 96 * _MIB, 96 * _MIB)
_MEMORY = 2048  # MiB

_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
exec </dev/null >/dev/ttyS0 2>&1
hostname guest
modprobe -a virtio_pci virtio_blk virtio_scsi sd_mod nvme loop ext4 dm_mod dm_snapshot dm_thin_pool
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle
cd /repository
PYTHONPATH=/repository:/packages PYTHONDONTWRITEBYTECODE=1 CI=1 \\
    python3 -m pytest -p no:cacheprovider -o tmp_path_retention_policy=none \\
    -o python_files='guest_*.py' --durations=0 -v tests/vm ARGUMENTS
echo "DONE$?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def prepare() -> tuple[Path, Path]:
    """Return the kernel and the root file system's archive, made where they are not there yet."""
    release = _RELEASES.get(sys.version_info[:2])
    if release is None:
        known = " or ".join(f"{major}.{minor}" for major, minor in _RELEASES)
        raise SystemExit(f"the machine's Debian has Python {known}; set PYTHON to one of them")
    kernel, archive = CACHE / f"vmlinuz-{release}", CACHE / f"root-{release}.cpio"
    if kernel.exists() and archive.exists():
        return kernel, archive
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        root = Path(folder) / "root"
        print(f"making a Debian {release} (once, some minutes)", flush=True)
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, root)
        # Unpacked only: as an installed package it would make an initramfs of its own.
        script = (
            f"cd /tmp && apt-get update -qq && apt-get download -qq $(apt-cache depends {_KERNEL}"
            " | sed -n 's/.*Depends: //p' | head -1)"
        )
        run("chroot", root, "sh", "-c", script)
        (package,) = (root / "tmp").glob("linux-image-*.deb")
        run("dpkg-deb", "-x", package, Path(folder) / "kernel")
        (modules,) = (Path(folder) / "kernel").glob("lib/modules/*")
        (image,) = (Path(folder) / "kernel").glob("boot/vmlinuz-*")
        (root / "usr/lib/modules").mkdir(exist_ok=True)
        modules.replace(root / "usr/lib/modules" / modules.name)
        run("chroot", root, "/sbin/depmod", modules.name)
        for waste in (
            "boot",
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/locale",
            "tmp",
        ):
            shutil.rmtree(root / waste)
        (root / "tmp").mkdir()
        packed = _pack(root, Path(folder) / "root.cpio")
        image.replace(kernel)
        packed.replace(archive)
    return kernel, archive


def _pack(root: Path, archive: Path) -> Path:
    """Pack a folder as the kernel wants its initramfs."""
    listing = "\0".join([".", *(str(path.relative_to(root)) for path in sorted(root.rglob("*")))])
    with archive.open("wb") as stream:
        subprocess.run(
            [find_tool("cpio"), "--quiet", "--null", "--create", "--format=newc"],
            input=listing.encode(errors="surrogateescape"),
            stdout=stream,
            cwd=root,
            check=True,
        )
    return archive


def _pack_repository(folder: Path, arguments: str) -> Path:
    """Pack what changes: the repository, the packages, and the program that starts it all."""
    root = folder / "root"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("imagefs", "formats", "mounters", "fixtures", "tests"):
        shutil.copytree(REPOSITORY / name, root / "repository" / name, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", root / "repository")
    packages = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    shutil.copytree(packages, root / "packages", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    init = root / "init"
    init.write_text(_INIT.replace("DONE", DONE).replace("ARGUMENTS", arguments))
    init.chmod(0o755)
    return _pack(root, folder / "repository.cpio")


@contextmanager
def _disks(folder: Path) -> Iterator[list[str]]:
    """Make the machine's disks, and yield QEMU's options for them."""
    options = ["-device", "virtio-scsi-pci,id=scsi"]
    fronts = (
        "virtio-blk-pci,drive=disk0,serial=IMAGEFS-VIRTIO",
        "nvme,drive=disk1,serial=IMAGEFS-NVME",
        "scsi-hd,bus=scsi.0,drive=disk2,serial=IMAGEFS-SCSI,vendor=ACME,product=Tortoise,ver=1.2",
    )
    for number, (front, size) in enumerate(zip(fronts, _DISK_SIZES, strict=True)):
        path = folder / f"disk{number}.raw"
        with path.open("wb") as stream:
            stream.truncate(size)
        options += ["-drive", f"file={path},format=raw,if=none,id=disk{number},cache=unsafe"]
        options += ["-device", front]
    yield options


def run_guest(arguments: str = "", timeout: float = 2400) -> int:
    """Run the guest tests in a machine, its console shown, and return pytest's exit code.

    A machine that ends without one is exit code 1. It runs as long as this process does.
    """
    kernel, archive = prepare()
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        initrd = folder / "initrd"
        with initrd.open("wb") as stream:
            for part in (archive, _pack_repository(folder, arguments)):
                with part.open("rb") as reader:
                    shutil.copyfileobj(reader, stream)
        with _disks(folder) as disks:
            command = [
                find_tool("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
                "-m", str(_MEMORY), "-nographic", "-no-reboot", "-nic", "none", "-serial", "mon:stdio",
                "-kernel", str(kernel), "-initrd", str(initrd),
                "-append", "console=ttyS0 quiet panic=-1 rdinit=/init", *disks,
            ]  # fmt: skip
            return _watch(command, timeout)


def _watch(command: list[str], timeout: float) -> int:
    code = 1
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=tool_environment()
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(timeout, process.kill)
        watchdog.start()
        try:
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                print(line, flush=True)
                if DONE in line:
                    code = int(line.rpartition(DONE)[2] or 1)
        finally:
            watchdog.cancel()
            process.kill()
    return code
