"""Images made and used under Windows and here in turn: each is read by the other, byte for byte."""

import hashlib
import json
from pathlib import Path

import pytest

from fixtures.disks import fat_disk
from fixtures.partition_tables import BuiltDisk
from fixtures.tools import run
from tests.fixtures import plain_reader
from tests.imagefs.imaging.chains import moments
from tests.running import Ran, run_imagefs
from tests.wine.environment import HOME, build_program, windows_path
from tests.wine.windows import Windows

PASSWORD = "correct horse ß"


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltDisk]:
    """Return a disk, and how it was after each of three changes."""
    folder = tmp_path_factory.mktemp("moments")
    return moments(fat_disk(folder), folder, [(1,), (1,), (1,)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran.errors
    return ran


def check_points(wine: Windows, folder: Path, disks: list[BuiltDisk], password: str | None = None) -> None:
    """Hold every point against its source: by a plain reader, and what each system says of the set."""
    for number, disk in enumerate(disks):
        assert plain_reader.restore(folder, number, password=password) == disk.path.read_bytes(), number
    for command in (["points"], ["verify"]):
        done(wine.same(*command, "--json", folder, password=password))
    assert len(list(folder.glob("*.mrimgx"))) == len(disks)
    assert {path.suffix for path in folder.iterdir()} == {".mrimgx"}


@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_set_that_both_continue(
    wine: Windows, disks: list[BuiltDisk], tmp_path: Path, password: str | None
) -> None:
    encrypt = [] if password is None else ["--encrypt"]
    done(wine.run("backup", disks[0].path, tmp_path, *encrypt, "--exact", "--verify", password=password))
    done(run_imagefs("backup", disks[1].path, tmp_path, "--exact", password=password))
    done(wine.run("backup", disks[2].path, tmp_path, "--exact", password=password))
    done(run_imagefs("backup", disks[3].path, tmp_path, "--exact", "--type", "diff", password=password))
    check_points(wine, tmp_path, disks, password)
    listed = json.loads(done(run_imagefs("points", "--json", tmp_path)).output)["sets"]
    assert [point["role"] for point in listed[0]["points"]] == ["full", "inc", "inc", "diff"]


def test_files_of_split_images_are_alike(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    for name, starter in (("there", wine.run), ("here", run_imagefs)):
        (tmp_path / name).mkdir()
        options = ("--split", "1M", "--compression", "none", "--exact")
        done(starter("backup", disks[0].path, tmp_path / name, *options))
    there, here = (sorted((tmp_path / name).iterdir()) for name in ("there", "here"))
    assert len(there) == len(here) > 2
    assert done(run_imagefs("cat", there[-1], "disk0.raw")).output == disks[0].path.read_bytes()
    assert done(wine.run("cat", here[-1], "disk0.raw")).output == disks[0].path.read_bytes()
    done(wine.same("verify", "--json", tmp_path / "there"))


def test_a_wrong_password(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    done(wine.run("backup", disks[0].path, tmp_path, "--encrypt", password=PASSWORD))
    (image,) = tmp_path.iterdir()
    for password in (None, "wrong", PASSWORD.upper()):
        assert wine.same("ls", image, password=password).code == 5
    secret = tmp_path.parent / f"{tmp_path.name}.password"
    secret.write_bytes(f"{PASSWORD}\r\n".encode())  # as Windows' editors write it
    done(wine.run("ls", image, "--password-file", secret))


def test_restoring(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for disk in disks[:2]:
        done(run_imagefs("backup", disk.path, tmp_path / "set", "--exact"))
    images = sorted((tmp_path / "set").iterdir())
    target = tmp_path / "restored.raw"
    done(wine.run("restore", images[0], target, "--yes"))
    assert sha256(target) == sha256(disks[0].path)
    done(wine.run("restore", images[1], target, "--delta", "--yes"))  # only what changed, into what is there
    assert sha256(target) == sha256(disks[1].path)
    refused = wine.run("restore", images[1], images[0], "--yes")
    assert refused.code == 6
    done(wine.same("verify", "--json", tmp_path / "set"))


def test_cloning_a_file(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    done(wine.run("clone", disks[0].path, tmp_path / "there.raw", "--keep-id"))
    done(run_imagefs("clone", disks[0].path, tmp_path / "here.raw", "--keep-id"))
    assert sha256(tmp_path / "there.raw") == sha256(tmp_path / "here.raw")


def test_what_is_used_is_the_same(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    """Without --exact what is free is left out: the same, wherever it is found out."""
    for name, starter in (("there", wine.run), ("here", run_imagefs)):
        (tmp_path / name).mkdir()
        done(starter("backup", disks[0].path, tmp_path / name))
    there, here = (plain_reader.restore(tmp_path / name, 0) for name in ("there", "here"))
    assert there == here
    sizes = [path.stat().st_size for name in ("there", "here") for path in (tmp_path / name).iterdir()]
    assert abs(sizes[0] - sizes[1]) < 4096  # the documents tell of the machine


@pytest.fixture(scope="module")
def programs() -> Path:
    """Return a folder with a qemu-img.exe that runs the one of this system."""
    source, folder = Path(__file__).with_name("unix_program.c"), HOME / "programs"
    program = folder / "qemu-img.exe"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(exist_ok=True)
        options = ("-nostdlib", "-fno-builtin", "-lkernel32", "-lshell32", "-Wl,--entry=start")
        build_program(source, program, *options)
    return folder


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhdx"])
def test_converting(wine: Windows, disks: list[BuiltDisk], programs: Path, tmp_path: Path, kind: str) -> None:
    """By qemu-img, which reads the disk from our server."""
    (tmp_path / "set").mkdir()
    done(run_imagefs("backup", disks[0].path, tmp_path / "set", "--exact"))
    (image,) = (tmp_path / "set").iterdir()
    made = tmp_path / f"a disk.{kind}"
    path = {"WINEPATH": windows_path(programs)}
    with wine.started("-m", "imagefs", "convert", image, made, environment=path) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert str(made.name).encode() in output
    run("qemu-img", "convert", "-f", kind, "-O", "raw", made, tmp_path / "again.raw")
    assert sha256(tmp_path / "again.raw") == sha256(disks[0].path)
    assert {path.name for path in tmp_path.iterdir()} == {"set", made.name, "again.raw"}


def test_an_image_of_an_image(wine: Windows, disks: list[BuiltDisk], tmp_path: Path) -> None:
    """Converting to another set of images needs no other program."""
    (tmp_path / "set").mkdir()
    done(run_imagefs("backup", disks[0].path, tmp_path / "set", "--exact"))
    (image,) = (tmp_path / "set").iterdir()
    done(wine.run("convert", image, tmp_path / "again.mrimgx"))
    assert plain_reader.restore(tmp_path, 0) == disks[0].path.read_bytes()
