"""What is read from images is the same under Windows, byte for byte."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imagefs.built import BuiltSet, too_long, with_files
from tests.running import run_imagefs
from tests.wine.windows import Windows, tree_of

README = "disk4/p1/readme.txt"


def test_the_version(wine: Windows) -> None:
    told = wine.run_afresh("--version").output.splitlines()
    assert told[0] == run_imagefs("--version").output.strip()
    assert b"WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos" in told[1]


def test_the_real_full(wine: Windows, full_sample: Path, tmp_path: Path) -> None:
    for command in ("info", "points", "ls", "verify", "hash"):
        for option in ([], ["--json"]) if command != "hash" else ([],):
            assert wine.same(command, *option, full_sample).code == 0
    assert wine.same("timeline", full_sample).output.count(b"\n") > 50
    assert wine.same("ls", "--json", "--streams", full_sample, "disk4/p1").code == 0
    read = wine.same("cat", full_sample, README).output
    assert hashlib.sha256(read).hexdigest() in wine.same("hash", full_sample, README).text
    assert wine.run("cp", full_sample, README, tmp_path).code == 0
    assert (tmp_path / "readme.txt").read_bytes() == read


def test_a_real_delta_without_its_base(wine: Windows, delta_sample: Path) -> None:
    assert wine.same("info", "--json", delta_sample).code == 0
    done = wine.same("ls", delta_sample)
    assert done.code == 4
    assert "file number 0" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize("name", ["ntfs", "fat32", "exfat", "ext4", "logical", "fourk"])
def test_sets(wine: Windows, built_set: Callable[[str], BuiltSet], name: str, tmp_path: Path) -> None:
    made = built_set(name)
    for command in (["info", "--json"], ["hash", "--format", "hashdeep"], ["timeline", "--json"]):
        assert wine.same(*command, made.incremental.path).code == 0, command
    part = with_files(made.incremental)[0]
    hashed = wine.run("hash", made.incremental.path).output.decode(errors="surrogateescape")
    digests = {digest.lstrip("\\") for digest in (line.split("  ")[0] for line in hashed.splitlines())}
    assert set(part.files.values()) <= digests


def test_a_folder_of_sets(wine: Windows, every_set: list[BuiltSet], sets_folder: Path) -> None:
    listed = json.loads(wine.same("points", "--json", sets_folder).output)
    assert {each["image_id"] for each in listed["sets"]} == {each.image_id for each in every_set}
    assert wine.same("ls", "--json", sets_folder).code == 0
    assert wine.same("verify", "--json", sets_folder).code == 0


def test_what_is_copied(wine: Windows, built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    """All of a volume, against what was written into it.

    wine 8.0 says that it has made a link, and makes none; the system below it takes 255 bytes of a name.
    """
    made = built_set("ntfs")
    (part,) = with_files(made.full)
    target = tmp_path / "copied"
    done = wine.run("cp", made.full.path, f"disk1/p{part.number}", target)
    left_out = {*part.links, *too_long(part)}
    refused = re.findall(r"^imagefs: disk1/p1/([^:]+): ", done.errors, re.MULTILINE)
    assert (done.code, set(refused)) == (7, left_out)
    renamed = dict(
        re.findall(r"^imagefs: disk1/p1/(.+) is called (.+) in the copy$", done.errors, re.MULTILINE)
    )
    assert renamed == {"names/makefile": "makefile~2"}
    found = tree_of(target)
    assert set(found) >= {name for name in part.files if name not in {*left_out, *renamed}}
    for name, digest in part.files.items():
        if name not in left_out:
            copy = str(Path(name).with_name(renamed.get(name, Path(name).name)))
            assert found[copy][0] == digest, name
            assert name not in part.times or found[copy][1] == part.times[name], name


def test_whole_disks(wine: Windows, built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    """Megabytes through a pipe, and into a file: no byte is taken for the end of a line."""
    made = built_set("fat16")
    (disk,) = made.incremental.disks
    wanted = hashlib.sha256(disk.path.read_bytes()).hexdigest()
    read = wine.run("cat", made.incremental.path, "disk1.raw").output
    assert hashlib.sha256(read).hexdigest() == wanted
    assert wine.run("cp", made.incremental.path, "disk1.raw", tmp_path / "disk.raw").code == 0
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == wanted
