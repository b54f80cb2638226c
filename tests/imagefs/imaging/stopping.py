"""Runs that are stopped at a known place, and what they leave."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from imagefs.imaging import backup, resume, run
from imagefs.imaging.options import BackupOptions, Listener, Progress
from tests.imagefs.imaging.sources_of_noise import NoiseDisk, unfinished_in

QUICK = BackupOptions(key_iterations=1000, retries=2, retry_seconds=0.001)


def stopped(
    disk: NoiseDisk,
    folder: Path,
    options: BackupOptions = QUICK,
    *,
    at: int = 1 << 20,
    password: str | None = None,
    lines: list[str] | None = None,
) -> Path:
    """Image a disk until so many bytes of it are read, and interrupt; return the unfinished folder."""

    def progress(now: Progress) -> None:
        if now.phase == "reading" and now.done >= at:
            raise KeyboardInterrupt

    heard = lines if lines is not None else []
    before = set(unfinished_in(folder))
    with patch.object(run, "_REPORT_SECONDS", 0.0), pytest.raises(KeyboardInterrupt):
        backup(disk.path, folder, options, password=password, listener=Listener(progress, heard.append))
    (left,) = set(unfinished_in(folder)) - before
    assert any(str(left) in line and "--resume" in line for line in heard)
    return left


def stopped_again(left: Path, tasks: int) -> bool:
    """Go on for some tasks and interrupt; False where it was completed before."""
    done = 0

    def progress(now: Progress) -> None:
        nonlocal done
        done += now.phase == "reading"
        if done >= tasks:
            raise KeyboardInterrupt

    with patch.object(run, "_REPORT_SECONDS", 0.0):
        try:
            resume(left, listener=Listener(progress))
        except KeyboardInterrupt:
            return True
    return False


def state_of(unfinished: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((unfinished / "state.json").read_bytes())
    return state


def change_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file; None removes one."""
    document = json.loads(path.read_bytes()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
