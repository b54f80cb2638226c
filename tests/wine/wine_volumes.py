"""Volumes that C libraries read, in worker processes of Windows'; the workers themselves."""

import json
from pathlib import Path

from fixtures.bitlocker import Protectors, write_bitlocker
from fixtures.content import noise
from fixtures.volumes import make_ntfs, mounted_ntfs
from tests.imagefs.filesystems.nested.conftest import expected_shadows, shadowed_image, shadowed_raw
from tests.wine.windows import Windows

__all__ = ["expected_shadows", "shadowed_image", "shadowed_raw"]

PASSWORD, RECOVERY = Protectors().password or "", Protectors().recovery or ""
STORED = noise(3, 0, 200_000)

# Starts workers on a raw volume (the argument), and says how each ended.
WORKERS = r"""
import ctypes, json, os, subprocess, sys, time
from pathlib import Path
from formats.blockreader import FileReader
from formats.errors import DamagedError
from imagefs.filesystems.nested import isolated

def attempt(name, meanwhile):
    with FileReader(Path(sys.argv[1])) as lower:
        worker = isolated.Isolated("shadows", [lower], "p1")
        size = worker.told["stores"][0]["size"]
        reader = isolated.IsolatedReader(worker, 0, size)
        reader.read_at(0, 65536)
        meanwhile(worker)
        started = time.monotonic()
        try:
            for at in range(300 << 20, 308 << 20, 1 << 20):
                reader.read_at(at, min(1 << 20, size - at))
            said = "read"
        except DamagedError as error:
            said = str(error)
        took = time.monotonic() - started
        worker.close()
        print(json.dumps([name, said, took, worker.process.poll() is not None]), flush=True)

def stop(worker):
    isolated.PATIENCE = 0.5
    process = ctypes.windll.kernel32.OpenProcess(0x1F0FFF, False, worker.process.pid)
    assert ctypes.windll.ntdll.NtSuspendProcess(ctypes.c_void_p(process)) == 0

attempt("nothing", lambda worker: None)
attempt("killed", lambda worker: (worker.process.kill(), worker.process.wait()))
attempt("closed", lambda worker: worker.close())
attempt("stopped", stop)
"""


def test_shadow_copies(
    wine: Windows, shadowed_image: Path, expected_shadows: list[dict[str, tuple[int, str]]]
) -> None:
    done = wine.same("hash", shadowed_image, "disk0/p1/$Shadow")
    assert done.code == 0, done.errors
    found = {line.split("  ")[0].lstrip("\\") for line in done.text.splitlines()}
    for files in expected_shadows:
        for name, (_, digest) in files.items():
            if "System Volume Information" not in name:
                assert digest in found, name


def test_bitlocker(wine: Windows, tmp_path: Path) -> None:
    plain = make_ntfs(tmp_path / "plain", 8 << 20, "inner")
    with mounted_ntfs(plain) as root:
        (root / "c.bin").write_bytes(STORED)
    built = write_bitlocker(tmp_path / "volume", plain.read_bytes())
    (tmp_path / "set").mkdir()
    done = wine.run("backup", built.path, tmp_path / "set")
    assert done.code == 0, done.errors
    (image,) = (tmp_path / "set").iterdir()
    keys = {
        "password": PASSWORD.encode("utf-16-le") + b"\r\0\n\0",
        "recovery": RECOVERY.encode() + b"\r\n",
        "startup": built.startup_key,
    }
    for name, key in keys.items():
        (tmp_path / name).write_bytes(key)
        done = wine.same("cat", image, "--volume-key", tmp_path / name, "disk0/p1/c.bin")
        assert (done.code, done.output) == (0, STORED), (name, done.errors)
    (tmp_path / "wrong").write_bytes(b"wrong")
    assert wine.same("ls", image, "--volume-key", tmp_path / "wrong", "disk0/p1").code == 5


def test_workers(wine: Windows, shadowed_raw: Path) -> None:
    with wine.started("-c", WORKERS, shadowed_raw) as process:
        output, errors = process.communicate(timeout=120)
    told = {each[0]: each[1:] for each in map(json.loads, output.splitlines())}
    assert {name: said for name, (said, _, _) in told.items()} == {
        "nothing": "read",
        "killed": "p1: the library that reads it ended unexpectedly",
        "closed": "p1: closed",
        "stopped": "p1: the library that reads it has not gone on in time",
    }, errors.decode()
    assert all(has_ended for _, _, has_ended in told.values())
    assert told["stopped"][1] < 10
