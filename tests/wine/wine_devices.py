"""The calls that disks of Windows are read through, as wine's kernel32 and advapi32 answer them.

Wine 8.0 has one PhysicalDrive0, of which it tells a size and no partitions, and volumes that lie nowhere.
"""

import json
from pathlib import Path

from fixtures.content import noise
from tests.wine.windows import Windows

BIG = 5 << 30  # bytes: a place whose offset needs more than 32 bits

CALLS = r"""
import ctypes, json, mmap, sys
from imagefs.machine.windows import api as calls, disks, volumes

api = calls.load()
path = sys.argv[1]
big = int(sys.argv[2])

def code(call, *arguments):
    try:
        call(*arguments)
    except calls.ApiError as error:
        return error.code
    return 0

def opened(access=calls.GENERIC_READ, flags=0):
    return api.create_file(path, access, calls.SHARE_ALL, calls.OPEN_EXISTING, flags)

def read(handle, offset, length):
    buffer = memoryview(mmap.mmap(-1, 65536))[:length]
    got = api.read_file(handle, offset, buffer)
    return bytes(buffer[:got]).hex()

found = {"sizes": [ctypes.sizeof(calls.Overlapped), ctypes.sizeof(calls.TokenPrivilege)]}
first = opened()
second = opened(calls.GENERIC_READ | calls.GENERIC_WRITE)
unbuffered = opened(flags=calls.FILE_FLAG_NO_BUFFERING)
found["read"] = [read(first, 1000, 10), read(first, big + 5, 10), read(unbuffered, 4096, 512)]
found["end"] = [read(first, big + 90, 100), read(first, big + 100, 100), read(first, 2 * big, 1)]
memory = memoryview(bytearray(b"memory"))
found["written"] = [api.write_file(second, big, b"bytes"), api.write_file(second, 7, memory)]
api.flush_file_buffers(second)
found["read only"] = code(api.write_file, first, 0, b"x")
for handle in (first, second, unbuffered):
    api.close_handle(handle)
found["closed"] = code(api.close_handle, first)
found["missing"] = code(api.create_file, path + "x", 0, 7, 3, 0)
found["no such name"] = [code(api.query_dos_device, "nothing"), code(api.volume_at, "Q:\\")]
found["C"] = api.query_dos_device("C:")
found["names"] = [name in api.query_dos_device(None) for name in ("C:", "Z:", "NUL")]
c = api.volume_at("C:\\")
found["volumes"] = c in api.volumes()
found["places"] = [api.volume_path_names(c), api.volume_path_name(r"C:\windows\system32\notepad.exe")]
found["system"] = api.volume_information(c).file_system
found["privileges"] = [api.enable_privilege(name) for name in (calls.SE_BACKUP, calls.SE_RESTORE)]
found["no privilege"] = code(api.enable_privilege, "SeNothingPrivilege")
found["administrator"] = api.is_administrator()
found["numbers"] = disks.disk_numbers(api) == [disk.number for disk in disks.all_disks(api)]
found["titles"] = sorted(volume.title for volume in volumes.all_volumes(api))
print(json.dumps(found))
"""


def test_calls(wine: Windows, tmp_path: Path) -> None:
    path = tmp_path / "file"
    start, end = noise(1, 0, 8192), noise(2, 0, 100)
    with path.open("wb") as stream:
        stream.write(start)
        stream.seek(BIG)
        stream.write(end)
    (tmp_path / "calls.py").write_text(CALLS)
    with wine.started("-c", CALLS, path, str(BIG)) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert found["sizes"] == [32, 16]  # OVERLAPPED, TOKEN_PRIVILEGES of a 64-bit Windows
    assert found["read"] == [start[1000:1010].hex(), end[5:15].hex(), start[4096:4608].hex()]
    assert found["end"] == [end[90:].hex(), "", ""]
    assert found["written"] == [5, 6]
    assert (found["read only"], found["closed"], found["missing"]) == (5, 6, 2)
    assert found["no such name"] == [2, 2]
    assert found["names"] == [True, True, True]
    assert found["C"][0].startswith("\\Device\\")
    assert found["volumes"]
    assert found["places"] == [["C:\\"], "C:\\"]
    assert found["system"] == "NTFS"
    assert found["privileges"] == [True, True]
    assert found["no privilege"] == 1313  # ERROR_NO_SUCH_PRIVILEGE
    assert found["administrator"]
    assert found["numbers"]
    assert found["titles"][0] == "C:"
    with path.open("rb") as stream:
        assert stream.read(16) == start[:7] + b"memory" + start[13:16]
        stream.seek(BIG)
        assert stream.read() == b"bytes" + end[5:]


def test_what_is_told_of_disks(wine: Windows, tmp_path: Path) -> None:
    done = wine.run("disks", "--json")
    assert done.code == 0, done.errors
    found = json.loads(done.output)
    assert {"disks", "volumes"} == found.keys()
    assert "C:\\" in [place for volume in found["volumes"] for place in volume["mount_points"]]
    for disk in found["disks"]:
        assert disk["path"] == f"\\\\.\\PhysicalDrive{disk['number']}"
    assert wine.run("disks").code == 0


def test_names_of_sources(wine: Windows, tmp_path: Path) -> None:
    for name, code, said in (
        ("disk77", 2, "there is no disk77"),
        ("Q:", 2, "Q:: is no volume of this machine's disks"),
        ("C:", 2, "is on no disk"),
        ("\\\\.\\PhysicalDrive77", 7, "\\\\.\\PhysicalDrive77: "),
    ):
        done = wine.run("backup", name, tmp_path / "sets")
        assert (done.code, said in done.errors) == (code, True), done.errors
    assert not (tmp_path / "sets").exists()
