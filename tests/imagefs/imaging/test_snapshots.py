"""Snapshots without LVM: what is asked of it, and what its answers mean. tests/vm has the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from formats.blockreader import BlockReader
from imagefs.errors import SnapshotError, SourceReadError
from imagefs.imaging import snapshots
from imagefs.imaging.snapshots import Snapshot, SnapshotReader
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice

MIB = 1 << 20
UUID = "LVM-" + "aBcDeFgH" * 8


def mapped(folder: Path, name: str, uuid: str = UUID) -> BlockDevice:
    (folder / "dm").mkdir(parents=True, exist_ok=True)
    (folder / "dm/name").write_text(name + "\n")
    (folder / "dm/uuid").write_text(uuid + "\n")
    return BlockDevice("dm-7", (251, 7), folder)


def row(name: str, **facts: str) -> dict[str, str]:
    usual = {
        "vg_name": "vg", "lv_name": name, "lv_attr": "-wi-ao----", "lv_size": str(1000 * MIB), "lv_tags": "",
        "segtype": "linear", "vg_free": str(500 * MIB), "vg_extent_size": str(4 * MIB), "data_percent": "",
        "lv_snapshot_invalid": "", "lv_kernel_major": "251", "lv_kernel_minor": "7",
    }  # fmt: skip
    return {**usual, **facts}


class Lvm:
    """Answers in place of LVM's commands, and keeps what was asked."""

    def __init__(self, *rows: dict[str, str]) -> None:
        self.rows = {one["lv_name"]: one for one in rows}
        self.asked: list[tuple[str, ...]] = []
        self.failing: tuple[str, ...] = ()

    def __call__(self, command: str, *arguments: str) -> str:
        if command != "lvs":
            self.asked.append((command, *arguments))
        if command in self.failing:
            raise SnapshotError(f"{command}: it does not work")
        if command == "lvcreate":
            name = arguments[arguments.index("--name") + 1]
            self.rows[name] = row(name, lv_attr="sri-a-s---", segtype="linear", data_percent="0.00")
        if command == "lvremove":
            self.rows.pop(arguments[-1].partition("/")[2])
        chosen = [one for one in self.rows.values() if self._selected(one, arguments)]
        return json.dumps({"report": [{"lv": chosen}]})

    @staticmethod
    def _selected(one: dict[str, str], arguments: tuple[str, ...]) -> bool:
        if "--select" not in arguments:
            return True
        return f'lv_name="{one["lv_name"]}"' in arguments[arguments.index("--select") + 1]


@pytest.fixture
def lvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lvm:
    made = Lvm(row("home"))
    monkeypatch.setattr(snapshots, "_lvm", made)
    monkeypatch.setattr(snapshots, "_WAIT", 0)
    monkeypatch.setattr(devices, "by_number", lambda number: BlockDevice("dm-9", number, tmp_path))
    return made


@pytest.mark.parametrize(
    ("mapped_name", "names"),
    [
        ("vg-home", ("vg", "home")),
        ("my--group-my--data", ("my-group", "my-data")),
        ("a---b", ("a-", "b")),
        ("a-b--", ("a", "b-")),
        ("a.b_c+1-d", ("a.b_c+1", "d")),
    ],
)
def test_names(tmp_path: Path, mapped_name: str, names: tuple[str, str]) -> None:
    assert snapshots.volume_name(mapped(tmp_path, mapped_name)) == names


def test_which_devices_are_logical_volumes(tmp_path: Path) -> None:
    assert snapshots.is_logical_volume(mapped(tmp_path, "vg-home"))
    for uuid in (UUID + "-real", UUID + "-cow", UUID + "-tpool", "CRYPT-LUKS2-" + "a" * 32, ""):
        assert not snapshots.is_logical_volume(mapped(tmp_path, "vg-home", uuid))
    assert not snapshots.is_logical_volume(BlockDevice("sda", (8, 0), tmp_path / "sda"))
    with pytest.raises(SnapshotError, match="no logical volume's name"):
        snapshots.volume_name(mapped(tmp_path, "luks"))


@pytest.mark.parametrize(
    ("origin", "free", "size", "extents"),
    [
        (10_000, 5000, None, 500),  # a fifth
        (10_000, 1000, None, 250),  # what is free
        (1000, 5000, None, 64),  # 256 MiB
        (100, 5000, None, 27),  # all of it, and what LVM keeps of it
        (1000, 5000, 9, 3),  # as asked, by whole extents
        (1000, 3, None, None),
    ],
)
def test_sizes(
    lvm: Lvm, tmp_path: Path, origin: int, free: int, size: int | None, extents: int | None
) -> None:
    lvm.rows["home"] = row("home", lv_size=str(origin * MIB), vg_free=str(free * MIB))
    device = mapped(tmp_path, "vg-home")
    if extents is None:
        with pytest.raises(SnapshotError, match="no free space"):
            snapshots.take(device)
        assert lvm.asked == []
        return
    taken = snapshots.take(device, size=None if size is None else size * MIB)
    (command,) = lvm.asked
    assert command[0] == "lvcreate"
    assert command[command.index("--extents") + 1] == str(extents)
    assert command[-1] == "vg/home"
    taken.remove()
    assert lvm.asked[-1] == ("lvremove", "--yes", "--quiet", f"vg/{taken.name}")


def test_thin_volumes_need_no_size(lvm: Lvm, tmp_path: Path) -> None:
    lvm.rows["home"] = row("home", segtype="thin", vg_free="0")
    taken = snapshots.take(mapped(tmp_path, "vg-home"))
    assert "--extents" not in lvm.asked[0]
    assert lvm.asked[0][lvm.asked[0].index("--setactivationskip") + 1] == "n"
    taken.check()
    taken.remove()


def test_a_snapshot_that_fails_half_way_is_removed(
    lvm: Lvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "by_number", lambda _: None)
    with pytest.raises(SnapshotError, match="not its device"):
        snapshots.take(mapped(tmp_path, "vg-home"))
    assert list(lvm.rows) == ["home"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"lv_attr": "sri-a-s---", "data_percent": "99.99"}, None),
        ({"lv_attr": "sri-s-s---", "data_percent": "1.00"}, None),
        ({"lv_attr": "sri-I-s---", "data_percent": "100.00"}, "is full"),
        ({"lv_attr": "sri-S-s---", "data_percent": ""}, "is full"),
        ({"lv_attr": "sri-a-s---", "data_percent": "100.00"}, "is full"),
        ({"lv_attr": "sri-a-s---", "lv_snapshot_invalid": "snapshot invalid"}, "is full"),
        ({"lv_attr": "sri---s---"}, "not active"),
        (None, "is gone"),
    ],
)
def test_states(lvm: Lvm, facts: dict[str, str] | None, said: str | None) -> None:
    if facts is not None:
        lvm.rows["imagefs-1"] = row("imagefs-1", **facts)
    snapshot = Snapshot("vg", "imagefs-1", "vg/home", thin=False)
    if said is None:
        snapshot.check()
    else:
        with pytest.raises(SnapshotError, match=said):
            snapshot.check()


class FailingReader(BlockReader):
    """A device that fails."""

    def _read(self, offset: int, length: int) -> bytes:
        raise SourceReadError("Input/output error", path=None, offset=offset, length=length)


def test_a_full_snapshots_reads_say_so(lvm: Lvm) -> None:
    reader = SnapshotReader(FailingReader(10), Snapshot("vg", "imagefs-1", "vg/home", thin=False))
    lvm.rows["imagefs-1"] = row("imagefs-1", lv_attr="sri-a-s---", data_percent="50.00")
    with pytest.raises(SourceReadError):
        reader.read_at(0, 10)
    lvm.rows["imagefs-1"] = row("imagefs-1", lv_attr="sri-I-s---", data_percent="100.00")
    with pytest.raises(SnapshotError, match="is full"):
        reader.read_at(0, 10)
    with pytest.raises(SnapshotError, match="is full"):
        reader.read_into(0, memoryview(bytearray(10)))


# --- What dead runs left ---


def test_leftovers(lvm: Lvm) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        alive = snapshots._owner(other.pid)
        boot, number, start = alive.split(":")
        tags = {
            "mine": snapshots._owner(os.getpid()),
            "alive": alive,
            "reused": f"{boot}:{number}:{int(start) - 1}",
            "boot": f"00000000-0000-0000-0000-000000000000:{number}:{start}",
            "broken": "nonsense",
        }
        for name, owner in tags.items():
            lvm.rows[f"imagefs-{name}"] = row(f"imagefs-{name}", lv_tags=f"imagefs,imagefs-owner={owner}")
        lvm.rows["imagefs-untagged"] = row("imagefs-untagged")
        lvm.rows["home"]["lv_tags"] = "imagefs,imagefs-owner=nonsense"
        snapshots.remove_leftovers()
        left = {"home", "imagefs-untagged", "imagefs-mine", "imagefs-alive"}
        assert set(lvm.rows) == left
        other.communicate(b"\n")
    snapshots.remove_leftovers()
    assert set(lvm.rows) == left - {"imagefs-alive"}


def test_leftovers_that_can_not_be_removed_hinder_nothing(lvm: Lvm) -> None:
    lvm.rows["imagefs-dead"] = row("imagefs-dead", lv_tags="imagefs,imagefs-owner=a:1:1")
    lvm.failing = ("lvremove",)
    snapshots.remove_leftovers()
    assert "imagefs-dead" in lvm.rows


# --- Signals, and the commands themselves ---


def test_signals_end_in_order_while_there_is_a_snapshot(lvm: Lvm, tmp_path: Path) -> None:
    first, second = (snapshots.take(mapped(tmp_path, "vg-home")) for _ in range(2))
    first.remove()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    second.remove()
    with pytest.raises(KeyError):
        second.remove()  # gone already; counts once
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_somebody_elses_signal_handlers_stay(lvm: Lvm, tmp_path: Path) -> None:
    def own(number: int, _: FrameType | None) -> None:
        raise AssertionError(number)

    try:
        taken = snapshots.take(mapped(tmp_path, "vg-home"))
        signal.signal(signal.SIGTERM, own)
        taken.remove()
        assert signal.getsignal(signal.SIGTERM) is own
        snapshots.take(mapped(tmp_path, "vg-home")).remove()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    snapshots.take(mapped(tmp_path, "vg-home")).remove()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_commands_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = tmp_path / "lvcreate"
    made.write_text(
        '#!/bin/sh\necho "  a warning" >&2\necho "  Volume group \\"$1\\" not found" >&2\nexit 5\n'
    )
    made.chmod(0o755)
    with pytest.raises(SnapshotError, match='lvcreate: Volume group "vg" not found'):
        snapshots._lvm("lvcreate", "vg")
    with pytest.raises(SnapshotError, match=r"lvnothing: No such file.*package lvm2"):
        snapshots._lvm("lvnothing")
    (tmp_path / "lvs").write_text("#!/bin/sh\necho nonsense\n")
    (tmp_path / "lvs").chmod(0o755)
    with pytest.raises(SnapshotError, match="can't be understood"):
        snapshots._volumes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_command_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Killed half way, lvcreate leaves the volume suspended."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = tmp_path / "lvcreate"
    made.write_text(f"#!/bin/sh\nkill -{int(number)} $PPID\nsleep 1\ntouch {tmp_path}/ended\n")
    made.chmod(0o755)
    snapshots._Signals.acquire()
    try:
        with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
            snapshots._lvm("lvcreate")
    finally:
        snapshots._Signals.release()
    assert (tmp_path / "ended").exists()
