"""Security descriptors of NTFS through ``imagefs cp --security``, held against ntfs-3g."""

import os
from pathlib import Path

import pytest

from fixtures.mrimgx_writer import SetWriter
from fixtures.ntfs_metadata import SYSTEM, descriptor, owners
from fixtures.partition_tables import MIB, Volume, copy_sparse, create_file, gpt_disk
from fixtures.tools import fuse_mount
from fixtures.volumes import KNOWN_TIME, make_ntfs, mounted_ntfs, set_xattr
from tests.conftest import run_imagefs
from tests.imagefs.filesystems.ntfs.metadata import attribute_of, mounted_by_ntfs3g

ACL = "system.ntfs_acl"
FOLDER = "disk1/p1/owners"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_ntfs(tmp_path_factory.mktemp("security") / "source.volume", 24 * MIB, "Security")
    with mounted_ntfs(path) as root:
        owners(root)
        (root / "owners/link").symlink_to("audited")
        os.link(root / "owners/audited", root / "owners/second name")
        os.utime(root / "owners/audited", ns=(KNOWN_TIME, KNOWN_TIME + 700))
    return path


@pytest.fixture(scope="module")
def image(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    copy = create_file(folder / "copy.volume", volume.stat().st_size)
    copy_sparse(volume, copy)
    parts = [Volume(copy, volume.stat().st_size, "NTFS", "Security")]
    disk = gpt_disk(folder / "disk.raw", parts, "0F6B4C1D-0A0B-4C0D-8E0F-000000000080")
    return SetWriter(folder / "set").full([disk]).path


def descriptors(root: Path) -> dict[str, bytes | str]:
    found = [root / "owners", *(root / "owners").rglob("*")]
    return {str(path.relative_to(root)): attribute_of(path, ACL) for path in found if not path.is_symlink()}


def test_descriptors_onto_ntfs(image: Path, volume: Path, tmp_path: Path) -> None:
    target_volume = make_ntfs(tmp_path / "target.volume", 24 * MIB, "Target")
    with mounted_ntfs(target_volume) as target:
        done = run_imagefs("cp", "--security", image, FOLDER, target)
        assert (done.code, done.errors) == (0, "")
    with (
        mounted_by_ntfs3g(volume, tmp_path / "source") as source,
        mounted_by_ntfs3g(target_volume, tmp_path / "target") as target,
    ):
        wanted = descriptors(source)
        assert len(set(wanted.values())) > 100
        assert descriptors(target) == wanted
        assert (target / "owners/audited").stat().st_mtime_ns == KNOWN_TIME + 700
        assert (target / "owners/second name").samefile(target / "owners/audited")


def test_modes_undo_no_descriptors(image: Path, volume: Path, tmp_path: Path) -> None:
    """Mounted with permissions, ntfs-3g makes new descriptors of modes that are set."""
    target = make_ntfs(tmp_path / "target.volume", 24 * MIB, "Target")
    mountpoint = tmp_path / "mounted"
    with fuse_mount(mountpoint, "ntfs-3g", "-o", "no_detach,permissions", target, mountpoint) as root:
        done = run_imagefs("cp", "--security", image, FOLDER, root)
        assert (done.code, done.errors) == (0, "")
    with (
        mounted_by_ntfs3g(volume, tmp_path / "source") as source,
        mounted_by_ntfs3g(target, mountpoint) as copied,
    ):
        assert descriptors(copied) == descriptors(source)


def test_without_the_option_the_target_decides(image: Path, tmp_path: Path) -> None:
    with mounted_ntfs(make_ntfs(tmp_path / "target.volume", 24 * MIB, "Target")) as target:
        assert run_imagefs("cp", image, FOLDER, target).code == 0
        assert attribute_of(target / "owners/audited", ACL) != descriptor(SYSTEM, SYSTEM, audited=True)


def test_folders_that_were_there_keep_theirs(image: Path, tmp_path: Path) -> None:
    with mounted_ntfs(make_ntfs(tmp_path / "target.volume", 24 * MIB, "Target")) as target:
        (target / "owners").mkdir()
        own = descriptor("S-1-5-32-544", "S-1-5-32-544")
        set_xattr(target / "owners", ACL, own)
        assert run_imagefs("cp", "--security", image, FOLDER, target).code == 0
        assert attribute_of(target / "owners", ACL) == own
        assert attribute_of(target / "owners/audited", ACL) == descriptor(SYSTEM, SYSTEM, audited=True)


def test_a_target_without_descriptors(image: Path, tmp_path: Path) -> None:
    done = run_imagefs("cp", "--security", image, FOLDER, tmp_path)
    assert done.code == 6
    assert "takes no security descriptors (NTFS does, mounted by ntfs-3g)" in done.errors
    assert not list(tmp_path.iterdir())
