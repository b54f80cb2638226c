"""Snapshots of LVM's logical volumes: taken before reading, held against overflow, removed afterwards.

LVM freezes the file system while it takes one, so that it is of one moment. A snapshot carries a tag with its
owner (process, its start, boot): one whose owner is gone is removed by the next run. Source: lvmsystemid(7),
lvcreate(8), lvs(8), lvmthin(7).
"""

import sys

assert sys.platform != "win32"

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from formats.blockreader import BlockReader, Extent
from imagefs.errors import SnapshotError, SourceReadError
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice

TAG = "imagefs"

_OWNER_TAG = "imagefs-owner="
_FRACTION = 5  # a classic snapshot takes a fifth of its origin: what may be written while it is read …
_SMALLEST = 256 << 20  # … but a small one more than that; bytes
_TRIES, _WAIT = 10, 0.5  # seconds; udev opens new devices for a moment, and LVM won't remove an open one
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def is_logical_volume(device: BlockDevice) -> bool:
    """Tell whether a device is a logical volume, not one of the hidden ones that LVM makes it of."""
    return re.fullmatch(r"LVM-\w{64}", device.attribute("dm/uuid")) is not None


def volume_name(device: BlockDevice) -> tuple[str, str]:
    """Return the names of a logical volume's group and of itself; device mapper doubles their hyphens."""
    name = device.attribute("dm/name")
    found = re.fullmatch(r"((?:[^-]|--)+)-((?:[^-]|--)+)", name)
    if found is None:
        raise SnapshotError(f"{name!r} is no logical volume's name", path=device.node)
    return found[1].replace("--", "-"), found[2].replace("--", "-")


@dataclass
class Snapshot:
    """A snapshot that exists until ``remove``."""

    group: str
    name: str
    origin: str  # "group/volume"
    thin: bool
    device: BlockDevice = field(init=False)
    _holds_signals: bool = field(init=False, default=True)

    @property
    def path(self) -> Path:
        """Its node, for messages."""
        return Path("/dev") / self.group / self.name

    def check(self) -> None:
        """Raise SnapshotError where it no longer holds its moment: it overflowed, or it is gone."""
        found = _volumes(f"{self.group}/{self.name}")
        if not found:
            raise SnapshotError("the snapshot is gone", path=self.path, hint="something else removed it")
        facts = found[0]
        # lvs(8), lv_attr: the fifth is the state; a active, s suspended for a moment, I and S invalid
        state = facts["lv_attr"][4:5]
        full = not self.thin and float(facts.get("data_percent") or 0) >= 100
        if full or state in ("I", "S") or facts.get("lv_snapshot_invalid") == "snapshot invalid":
            raise SnapshotError(
                f"the snapshot is full: more was written to {self.origin} than it holds",
                path=self.path,
                hint=f"make room in the volume group {self.group}, or image it while less is written",
            )
        if state not in ("a", "s"):
            raise SnapshotError("the snapshot is not active any more", path=self.path)

    def remove(self) -> None:
        """Remove it; raises SnapshotError with what LVM says."""
        try:
            _remove(f"{self.group}/{self.name}")
        finally:
            if self._holds_signals:
                self._holds_signals = False
                _Signals.release()


class SnapshotReader(BlockReader):
    """A snapshot's bytes. Raises SnapshotError in place of a SourceReadError once it has overflowed."""

    def __init__(self, lower: BlockReader, snapshot: Snapshot) -> None:
        super().__init__(lower.size)
        self.path = snapshot.path
        self._lower = lower
        self._snapshot = snapshot

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._lower.read_at(offset, length)
        except SourceReadError:
            self._snapshot.check()
            raise

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            self._lower.read_into(offset, buffer)
        except SourceReadError:
            self._snapshot.check()
            raise

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._lower.extents(offset, length)


def take(device: BlockDevice, *, size: int | None = None) -> Snapshot:
    """Take a snapshot of a logical volume, after removing what dead runs left.

    A classic one gets ``size`` bytes, by default a fifth of its origin, no more than its group has free; a
    thin one needs none. Raises SnapshotError.
    """
    remove_leftovers()
    group, volume = volume_name(device)
    origin = f"{group}/{volume}"
    facts = _volumes(origin)
    if not facts:
        raise SnapshotError("LVM doesn't know this logical volume", path=device.node)
    thin = facts[0].get("segtype", "").split(",")[0] == "thin"
    name = f"imagefs-{secrets.token_hex(4)}"
    options = ["--snapshot", "--name", name, "--permission", "r", "--addtag", TAG]
    options += ["--addtag", _OWNER_TAG + _owner(os.getpid())]
    if thin:
        options += ["--setactivationskip", "n"]
    else:
        options += ["--extents", str(_extents_for(facts[0], device, size))]
    _Signals.acquire()
    snapshot = Snapshot(group, name, origin, thin)
    try:
        _lvm("lvcreate", "--yes", "--quiet", *options, origin)
        snapshot.device = _device_of(snapshot)
    except BaseException:
        # LVM was asked for it: it may be there, also where this was interrupted.
        with contextlib.suppress(SnapshotError):
            if _volumes(f"{group}/{name}"):
                _remove(f"{group}/{name}")
        _Signals.release()
        raise
    return snapshot


def _extents_for(facts: Mapping[str, str], device: BlockDevice, size: int | None) -> int:
    """Return the extents of a classic snapshot."""
    extent, free = int(facts["vg_extent_size"]), int(facts["vg_free"])
    origin = int(facts["lv_size"])
    if size is None:
        size = max(origin // _FRACTION, min(_SMALLEST, origin + origin // 50 + extent))
    extents = min(-(-size // extent), free // extent)
    if extents < 1:
        raise SnapshotError(
            f"the volume group {facts['vg_name']} has no free space for a snapshot",
            path=device.node,
            hint="make room with lvreduce or vgextend, unmount the volume, or image it as it is with --live",
        )
    return extents


def _device_of(snapshot: Snapshot) -> BlockDevice:
    """Return the snapshot's device, waiting for its node where something makes nodes."""
    found = _volumes(f"{snapshot.group}/{snapshot.name}")
    if found:
        number = int(found[0]["lv_kernel_major"]), int(found[0]["lv_kernel_minor"])
        device = devices.by_number(number)
        if device is not None:
            return device
    raise SnapshotError("LVM made the snapshot, but not its device", path=snapshot.path)


# --- What dead runs left ---


def remove_leftovers() -> None:
    """Remove the snapshots of runs that ended without doing so; one that can't be removed stays."""
    for facts in _volumes():
        tags = facts.get("lv_tags", "").split(",")
        owner = next((tag.removeprefix(_OWNER_TAG) for tag in tags if tag.startswith(_OWNER_TAG)), "")
        if TAG in tags and facts["lv_name"].startswith("imagefs-") and owner and not _is_alive(owner):
            with contextlib.suppress(SnapshotError):  # open somewhere: LVM refuses, rightly
                _remove(f"{facts['vg_name']}/{facts['lv_name']}", tries=2)


def _owner(process: int) -> str:
    """Return what no other process is at any time: the boot, the number, the start in ticks since boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return f"{boot}:{process}:{fields[19]}"


def _is_alive(owner: str) -> bool:
    process = owner.split(":")[1:2]
    try:
        return bool(process) and process[0].isdecimal() and _owner(int(process[0])) == owner
    except OSError:
        return False


class _Signals:
    """Makes the signals that end a process end it as an interrupt does, while there is a snapshot."""

    _lock = threading.Lock()
    _count = 0
    _replaced: Sequence[int] = ()

    @classmethod
    def acquire(cls) -> None:
        with cls._lock:
            cls._count += 1
            if cls._count == 1 and threading.current_thread() is threading.main_thread():
                cls._replaced = [one for one in _SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
                for one in cls._replaced:
                    signal.signal(one, _end)

    @classmethod
    def release(cls) -> None:
        with cls._lock:
            cls._count -= 1
            if cls._count == 0 and threading.current_thread() is threading.main_thread():
                for one in cls._replaced:
                    if signal.getsignal(one) in (_end, signal.SIG_IGN):  # else it is somebody's own by now
                        signal.signal(one, signal.SIG_DFL)
                cls._replaced = ()


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: nothing may cut the removal short
    raise SystemExit(128 + number)


# --- LVM's commands ---

_FIELDS = (
    "vg_name,lv_name,lv_attr,lv_size,lv_tags,segtype,vg_free,vg_extent_size,data_percent,lv_snapshot_invalid,"
    "lv_kernel_major,lv_kernel_minor"
)


def _volumes(name: str | None = None) -> list[dict[str, str]]:
    """Return the facts of a logical volume ("group/volume"), of all where it is None; sizes are bytes."""
    arguments = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", _FIELDS]
    if name is not None:
        group, _, volume = name.partition("/")
        arguments += ["--select", f'vg_name="{group}" && lv_name="{volume}"']
    try:
        rows: list[dict[str, str]] = json.loads(_lvm("lvs", *arguments))["report"][0]["lv"]
    except (ValueError, LookupError) as error:
        raise SnapshotError("lvs gave a report that can't be understood") from error
    return rows


def _remove(name: str, tries: int = _TRIES) -> None:
    while True:
        try:
            _lvm("lvremove", "--yes", "--quiet", name)
            return
        except SnapshotError:
            tries -= 1
            if not tries:
                raise
            time.sleep(_WAIT)


def _lvm(command: str, *arguments: str) -> str:
    """Run one of LVM's commands; raises SnapshotError with the line that it ends with.

    An interrupt waits for its end: half done it can leave a volume suspended, and all who write to it.
    """
    environment = {**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    environment["PATH"] = os.pathsep.join([environment.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    try:
        # In a thread, because a signal's exception is raised in the main one, wherever that is just then; and
        # in a session of its own, where the terminal's interrupt doesn't reach it.
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(
                subprocess.run,
                [command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=environment,
                start_new_session=True,
            ).result()
    except OSError as error:
        raise SnapshotError(
            f"{command}: {error.strerror}", hint="LVM's commands come with the package lvm2"
        ) from error
    output, errors = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
    if done.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise SnapshotError(f"{command}: {said}", hint="" if os.geteuid() == 0 else "LVM needs root")
    return output
