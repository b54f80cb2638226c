"""Names that are one in the target of a copy, and what a copy does about them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import mounted_exfat
from formats.blockreader import BytesReader
from imagefs.copying import copy_out
from imagefs.target_names import Doubts, may_be_one, may_be_short
from tests.imagefs.test_cp import HostileTree


class Named(HostileTree):
    """Each file holds its own name."""

    def open_reader(self, inode: int) -> BytesReader:
        return BytesReader(self.names[inode - 2].encode()[:5].ljust(5))


@pytest.fixture(scope="module")
def ignoring_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder of exFAT, where names differ by more than case."""
    volume = create_file(tmp_path_factory.mktemp("exfat") / "target.volume", 16 * MIB)
    run("mkfs.exfat", volume)
    with mounted_exfat(volume) as root:
        yield root


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: path.read_text(errors="replace").strip() for path in folder.iterdir() if path.is_file()
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", [[], ["MAKEFILE"]])
def test_names_that_are_one_never_replace_each_other(
    ignoring_case: Path, before: list[str], overwrite: bool
) -> None:
    target = ignoring_case / f"{len(before)} {overwrite}"
    target.mkdir()
    for name in before:
        (target / name).write_text("mine")
    result = copy_out(Named(["Makefile", "makefile", "other"]), [""], target, overwrite=overwrite)
    assert contents(target).pop("other") == "other"
    found = [value for name, value in contents(target).items() if name.lower() == "makefile"]
    if before and not overwrite:
        assert (found, result.files, len(result.failures)) == (["mine"], 1, 2)
    else:
        assert (found, result.files) in ((["makef"], 2), (["Makef"], 2))
        (failure,) = result.failures
        assert "another file of this copy has its name there" in failure
    again = copy_out(Named(["Makefile", "other"]), [""], target, overwrite=True)
    assert (again.failures, again.files) == ([], 2)


@pytest.mark.parametrize("overwrite", [False, True])
def test_directories_that_are_one_are_not_merged(ignoring_case: Path, overwrite: bool) -> None:
    target = ignoring_case / f"folders {overwrite}"
    target.mkdir()
    result = copy_out(Named(["in", "Dir//", "dir//"]), [""], target, overwrite=overwrite)
    assert len([path for path in target.iterdir() if path.is_dir()]) == 1
    (failure,) = result.failures
    assert "another directory of this copy" in failure


@pytest.mark.skipif(sys.platform == "win32", reason="case does not count")
def test_where_case_counts_all_are_copied(tmp_path: Path) -> None:
    names = ["Makefile", "makefile", "Straße", "STRASSE", "LONGFI~1.TXT", "long file name.txt", "dot", "dot."]
    for overwrite in (False, True, True):
        result = copy_out(Named(names), [""], tmp_path, overwrite=overwrite)
        assert (result.failures, result.files) == ([], len(names))
    assert set(contents(tmp_path)) == set(names)
    assert contents(tmp_path)["makefile"] == "makef"


@pytest.mark.skipif(sys.platform == "win32", reason="case does not count")
def test_second_names_of_one_file_are_two(tmp_path: Path) -> None:
    """What is replaced may have two names, which are not one for that."""
    (tmp_path / "Makefile").write_text("mine")
    os.link(tmp_path / "Makefile", tmp_path / "makefile")
    result = copy_out(Named(["Makefile", "makefile"]), [""], tmp_path, overwrite=True)
    assert result.failures == []
    assert contents(tmp_path) == {"Makefile": "Makef", "makefile": "makef"}


def test_a_short_name_of_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and NTFS find "long file name.txt" by LONGFI~1.TXT as well."""
    (tmp_path / "long file name.txt").touch()
    (tmp_path / "LONGFI~1.TXT").touch()
    names = [tmp_path / "LONGFI~1.TXT", tmp_path / "long file name.txt", tmp_path / "else.txt"]
    doubts = Doubts(names)
    assert [name in doubts for name in names] == [True, False, False]
    doubts.made(names[2])
    doubts.made(names[1])
    assert doubts.other(names[0]) is None  # here they are two
    monkeypatch.setattr(os.path, "samestat", lambda one, other: one.st_size == other.st_size == 3)
    names[0].write_text("one")
    names[1].write_text("one")
    assert doubts.other(names[0]) is None  # and both are listed
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([names[1], names[2]]))
    assert doubts.other(names[0]) == names[1]


def test_many_short_names_are_not_held_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is listed by its own name, or not there at all, is no other file: none need be looked at."""
    monkeypatch.setattr(os.path, "samestat", lambda one, other: pytest.fail("compared"))
    names = [tmp_path / f"F~{number}.TXT" for number in range(20)]
    doubts = Doubts(names)
    for name in (*names, *names):
        assert doubts.other(name) is None
        name.touch()
        doubts.made(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "A"), ("Straße", "STRASSE"), ("\u00e9", "e\u0301"), ("x", "x."), ("x", "x .. "), ("\u017f", "S")],
)
def test_what_may_be_one(one: str, other: str) -> None:
    assert may_be_one(one) == may_be_one(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LONGFI~1.TXT", True),
        ("progra~1", True),
        ("AB12CD~9.X", True),
        ("~$letter.doc", False),
        ("backup~", False),
        ("too long~1.txt", False),
        ("a.b~1.c", False),
        ("plain.txt", False),
    ],
)
def test_what_may_be_short(name: str, expected: bool) -> None:
    assert may_be_short(name) is expected
