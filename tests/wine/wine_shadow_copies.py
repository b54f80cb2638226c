"""Shadow copies by the real pywin32, as far as wine's management instrumentation goes: it knows none."""

import json
from pathlib import Path

from tests.wine.windows import Windows

# Asks wine's WMI as the product does, and says what came of it.
ASK = r"""
import json, os, sys
from imagefs.errors import SnapshotError
from imagefs.machine.windows.shadow_copies import running_system, take
from imagefs.machine.windows.wmi import Wmi

system = running_system()
told = {}
try:
    system.records_folder()
except SnapshotError as error:
    told["folder"] = str(error)
for name, call in (
    ("take", lambda: take({"\\\\?\\Volume{00000000-0000-0000-0000-000000000043}\\": "C:"}, system)),
    ("delete", lambda: Wmi(system).delete("{00000000-0000-0000-0000-000000000001}")),
):
    try:
        call()
    except SnapshotError as error:
        told[name] = [str(error), error.exit_code]
with system.initialized():
    disks = system.services().ExecQuery("SELECT * FROM Win32_DiskDrive")
    told["disks"] = [str(disk.Properties_.Item("DeviceID").Value) for disk in disks]
    del disks
me = system.myself()
told["alive"] = [system.is_alive(me), system.is_alive(me | {"started": "1"}), me["pid"] == os.getpid()]
with open(sys.argv[1], "w") as answer:
    json.dump(told, answer)
"""

# Changes a record that another run has open, as Record.read opens it.
READ = r"""
import sys, threading
from pathlib import Path
from imagefs.machine.windows import shadow_records
from imagefs.machine.windows.shadow_records import Record

record = Record.new(Path(sys.argv[1]), {"pid": 1, "started": "1"})
record.save()
opened = shadow_records.open_stream(record.path)
threading.Timer(0.5, opened.close).start()  # wine knows no renaming in the place of what is open: it waits
record.needed_by = "somebody"
record.save()
assert Record.read(record.path).needed_by == "somebody"
with shadow_records.open_stream(record.path):
    record.remove()
"""


def test_a_record_is_changed_while_another_run_reads_it(wine: Windows, tmp_path: Path) -> None:
    with wine.started("-c", READ, tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode(errors="replace")
    assert not list(tmp_path.iterdir())


def test_a_windows_without_shadow_copies_says_so(wine: Windows, tmp_path: Path) -> None:
    answer = tmp_path / "answer.json"
    with wine.started("-c", ASK, answer) as process:
        process.wait(timeout=60)  # services that it has wine start keep its pipes open
    told = json.loads(answer.read_text())
    what = "Windows' shadow copies (VSS) are not there (image it as it is with --live)"
    assert told["take"] == told["delete"] == [what, 7]
    assert all("PHYSICALDRIVE" in disk.upper() for disk in told["disks"])  # the calls themselves work
    # Wine gives what it makes to this user: not even the folder around the records' is believed.
    assert told["folder"].startswith("C:\\ProgramData\\imagefs: was not made by an administrator")
    assert told["alive"] == [True, False, True]
