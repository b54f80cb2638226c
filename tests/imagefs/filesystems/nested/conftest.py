"""A volume with shadow copies, as it is and imaged; what other readers find in it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytsk3
import pyvshadow

from fixtures.tools import run
from tests.conftest import SHARED, run_imagefs

SAMPLE = SHARED / "vsstest.qcow2"


@pytest.fixture(scope="session")
def shadowed_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an NTFS volume of 1 GiB with two shadow copies (a test volume of libvshadow's author)."""
    if not SAMPLE.exists():
        pytest.skip(f"the sample {SAMPLE.name} is not there")
    path = tmp_path_factory.mktemp("shadowed") / "vss.raw"
    run("qemu-img", "convert", "-O", "raw", SAMPLE, path)
    return path


@pytest.fixture(scope="session")
def shadowed_image(shadowed_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of its used blocks."""
    folder = tmp_path_factory.mktemp("shadowed-set")
    done = run_imagefs("backup", shadowed_raw, folder)
    assert done.code == 0, done.errors
    (image,) = folder.glob("*.mrimgx")
    return image


@pytest.fixture(scope="session")
def shadowed_exact(shadowed_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of all its blocks."""
    folder = tmp_path_factory.mktemp("shadowed-exact")
    done = run_imagefs("backup", "--exact", shadowed_raw, folder)
    assert done.code == 0, done.errors
    (image,) = folder.glob("*.mrimgx")
    return image


class StoreImage(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    """A shadow copy for TSK."""

    def __init__(self, store: Any) -> None:
        self.store = store
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, length: int) -> bytes:
        data: bytes = self.store.read_buffer_at_offset(length, offset)
        return data

    def get_size(self) -> int:
        return int(self.store.size)

    def close(self) -> None:
        pass


def stored_files(store: Any) -> dict[str, tuple[int, str]]:
    """Return the sizes and hashes of a shadow copy's files, as libvshadow and TSK read them."""
    image = StoreImage(store)
    return dict(_below(pytsk3.FS_Info(image).open_dir("/"), ""))


def _below(directory: Any, path: str) -> Iterator[tuple[str, tuple[int, str]]]:
    for entry in directory:
        name, meta = entry.info.name.name.decode(), entry.info.meta
        if name.startswith("$") or name in (".", "..") or meta is None:
            continue
        if meta.type == pytsk3.TSK_FS_META_TYPE_DIR:
            yield from _below(entry.as_directory(), f"{path}{name}/")
        else:
            digest = hashlib.sha256()
            for offset in range(0, meta.size, 1 << 20):
                digest.update(entry.read_random(offset, min(1 << 20, meta.size - offset)))
            yield f"{path}{name}", (meta.size, digest.hexdigest())


@pytest.fixture(scope="session")
def expected_shadows(shadowed_raw: Path) -> list[dict[str, tuple[int, str]]]:
    """Return the files of both shadow copies, by path."""
    volume = pyvshadow.volume()
    volume.open(str(shadowed_raw))
    return [stored_files(store) for store in volume.stores]
