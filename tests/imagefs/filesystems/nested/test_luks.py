"""LUKS volumes that cryptsetup formats, filled with what its own volume key encrypts."""

import json
import re
import struct
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import imagefs
from fixtures.content import noise
from fixtures.tools import run
from formats.blockreader import BytesReader
from formats.errors import FormatError, PasswordError
from imagefs.filesystems import VolumeKey, VolumeOptions
from imagefs.filesystems.nested import isolated
from imagefs.filesystems.nested.luks import Luks, is_luks
from tests.conftest import run_imagefs

PASSWORD = b"pass phrase"
FILES = {"readme.txt": b"inside\n", "big.bin": noise(8, 0, 300_000)}
KEYS = (VolumeKey(PASSWORD + b"\n"),)


def formatted(path: Path, kind: str, iterations: int = 2000) -> Path:
    with path.open("wb") as file:
        file.truncate(24 << 20)
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", str(iterations))
    cipher = ("--cipher", "aes-xts-plain64", "--key-size", "512")
    run("cryptsetup", "luksFormat", "-q", "--type", kind, *quick, *cipher, path, "-", stdin=PASSWORD)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Return a LUKS1 volume with an ext4 inside, and the bytes of that."""
    folder = tmp_path_factory.mktemp("luks")
    path = formatted(folder / "volume", "luks1")
    (folder / "key").write_bytes(PASSWORD)
    said = run(
        "cryptsetup", "luksDump", "-q", "--dump-volume-key", "--key-file", folder / "key", path
    ).decode()
    key = bytes.fromhex(said.partition("MK dump:")[2])
    start = int(re.findall(r"Payload offset:\s+(\d+)", said)[0]) * 512
    (folder / "tree").mkdir()
    for name, content in FILES.items():
        (folder / "tree" / name).write_bytes(content)
    run("mke2fs", "-q", "-t", "ext4", "-d", folder / "tree", folder / "ext4", f"{(24 << 20) - start >> 10}k")
    plain = (folder / "ext4").read_bytes()
    with path.open("r+b") as file:
        file.seek(start)
        for number in range(len(plain) // 512):
            mode = modes.XTS(number.to_bytes(16, "little"))
            sector = plain[number * 512 : (number + 1) * 512]
            file.write(Cipher(algorithms.AES(key), mode).encryptor().update(sector))
    return path, plain


def test_the_bytes(built: tuple[Path, bytes]) -> None:
    path, plain = built
    volume = BytesReader(path.read_bytes())
    assert is_luks(volume)
    with closing(Luks(volume, "p", (VolumeKey(b"wrong"), *KEYS))) as opened:
        assert opened.reader is not None
        assert opened.reader.size == len(plain)
        assert opened.reader.read_at(0, len(plain)) == plain
        assert opened.method == "aes-xts-plain64 512"
    for keys in ((), (VolumeKey(b"wrong"),)):
        with closing(Luks(volume, "p", keys)) as locked:
            assert locked.reader is None


def test_keys_that_take_long_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast machine's cryptsetup has the library count for longer than a worker may else say nothing."""
    monkeypatch.setattr(isolated, "PATIENCE", 0.6)
    path = formatted(tmp_path / "volume", "luks1", 150_000)
    with closing(Luks(BytesReader(path.read_bytes()), "p", (VolumeKey(b"wrong"), *KEYS))) as opened:
        assert opened.reader is not None


def test_the_tree_and_info(built: tuple[Path, bytes], tmp_path: Path) -> None:
    done = run_imagefs("backup", built[0], tmp_path / "set")
    assert done.code == 0, done.errors
    (image,) = (tmp_path / "set").glob("*.mrimgx")
    with imagefs.open(image) as source:
        with closing(source.tree("", VolumeOptions(keys=KEYS))) as tree:
            for name, content in FILES.items():
                inside = tree.open_reader(tree.resolve(f"disk0/p1/{name}"))
                assert inside.read_at(0, inside.size) == content
        with closing(source.tree()) as tree, pytest.raises(PasswordError, match="LUKS, and it is locked"):
            tree.entries(tree.resolve("disk0/p1"))
    (part,) = json.loads(run_imagefs("info", "--json", image).output)["disks"][0]["partitions"]
    assert part["encryption"] == {
        "kind": "LUKS",
        "method": "aes-xts-plain64 512",
        "protectors": [{"kind": "password", "identifier": "slot 0"}],
        "state": "locked",
    }


def test_version_2_is_not_read(tmp_path: Path) -> None:
    """It stays what is recognised and shown as bytes alone."""
    path = formatted(tmp_path / "volume", "luks2")
    assert not is_luks(BytesReader(path.read_bytes()))
    done = run_imagefs("backup", path, tmp_path / "set")
    assert done.code == 0, done.errors
    (image,) = (tmp_path / "set").glob("*.mrimgx")
    with imagefs.open(image) as source, closing(source.tree()) as tree:
        assert [entry.name for entry in tree.entries(tree.resolve("disk0"))] == ["p1.raw"]


def test_damaged_headers_are_a_typed_error(
    built: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "LONGEST", 1.0)  # billions of rounds are asked for as well
    raw = built[0].read_bytes()
    for at in (8, 40, 72, 104, 108, 208, 212, 248):
        for patch in (b"\xff" * 4, struct.pack(">I", 1 << 20)):
            damaged = bytearray(raw)
            damaged[at : at + 4] = patch
            try:
                with closing(Luks(BytesReader(bytes(damaged)), "p", KEYS)) as opened:
                    if opened.reader is not None and opened.reader.size:
                        opened.reader.read_at(0, 1)
            except FormatError:
                continue
