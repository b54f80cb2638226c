"""BitLocker volumes that the fixtures write, held against what went in, dislocker, cryptsetup and libbde."""

import json
import random
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pybde
import pytest

import imagefs
from fixtures.bitlocker import SECTOR, BuiltBitLocker, Method, Protectors, write_bitlocker
from fixtures.content import noise, sha256_file
from fixtures.tools import run
from fixtures.volumes import make_ntfs, mounted_ntfs
from formats.blockreader import BlockReader, BytesReader, ConcatReader, ZeroReader
from formats.errors import DamagedError, FormatError, PasswordError, UnsupportedError
from imagefs.filesystems import VolumeKey, VolumeOptions
from imagefs.filesystems.detect import recognise
from imagefs.filesystems.nested.bitlocker import BitLocker, _attempts, is_bitlocker
from imagefs.tree import ImageTree
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import sha256_of

PASSWORD, RECOVERY = Protectors().password or "", Protectors().recovery or ""
FILES = {"a.txt": b"hello" * 1000, "b/c.bin": noise(3, 0, 200_000)}
STARTUP_ONLY = Protectors(password=None, recovery=None, tpm=False)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an NTFS volume of 8 MiB."""
    path = make_ntfs(tmp_path_factory.mktemp("plain") / "volume", 8 << 20, "inner")
    with mounted_ntfs(path) as root:
        for name, content in FILES.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
    return path.read_bytes()


@pytest.fixture(scope="session")
def built(plain: bytes, tmp_path_factory: pytest.TempPathFactory) -> BuiltBitLocker:
    """Return it encrypted, with all protectors but a clear key."""
    return write_bitlocker(tmp_path_factory.mktemp("bitlocker") / "volume", plain)


@pytest.fixture(scope="session")
def image(built: BuiltBitLocker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of it."""
    folder = tmp_path_factory.mktemp("bitlocker-set")
    done = run_imagefs("backup", built.path, folder)
    assert done.code == 0, done.errors
    (path,) = folder.glob("*.mrimgx")
    return path


def options(*keys: bytes) -> VolumeOptions:
    return VolumeOptions(keys=tuple(VolumeKey(key) for key in keys))


@pytest.mark.parametrize("method", Method)
def test_other_readers_open_what_is_written(plain: bytes, tmp_path: Path, method: Method) -> None:
    volume = write_bitlocker(tmp_path / "volume", plain, method, STARTUP_ONLY)
    (tmp_path / "key.bek").write_bytes(volume.startup_key)
    run("dislocker-file", "-V", volume.path, "-f", tmp_path / "key.bek", "--", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == plain
    assert b"VMK protected with startup key" in run("cryptsetup", "bitlkDump", volume.path)
    library = pybde.volume()
    library.read_startup_key(str(tmp_path / "key.bek"))
    library.open(str(volume.path))
    assert library.read_buffer_at_offset(len(plain), 0) == plain
    library.close()
    with closing(
        BitLocker(BytesReader(volume.path.read_bytes()), "p", options(volume.startup_key).keys)
    ) as ours:
        assert ours.reader is not None
        assert ours.reader.read_at(0, len(plain)) == plain
        bits = method.name.rpartition("_")
        assert ours.method == f"{bits[0].replace('_', '-')} {bits[2]}"


def test_dislocker_takes_the_password_and_the_recovery_password(
    built: BuiltBitLocker, tmp_path: Path
) -> None:
    for key in (f"-u{PASSWORD}", f"-p{RECOVERY}"):
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        run("dislocker-file", "-V", built.path, key, "--", out)
        assert out.read_bytes() == built.plain


SAVED = f"BitLocker Drive Encryption recovery key\r\n\r\nRecovery Key:\r\n\r\n\t{RECOVERY}\r\n"


@pytest.mark.parametrize(
    ("value", "tried"),
    [
        (PASSWORD.encode(), [f"P{PASSWORD}"]),
        (PASSWORD.encode() + b"\n", [f"P{PASSWORD}"]),
        (PASSWORD.encode("utf-16-le") + b"\r\0\n\0", [f"P{PASSWORD}"]),
        (b"\xef\xbb\xbf" + PASSWORD.encode(), [f"P{PASSWORD}"]),
        (RECOVERY.encode() + b"\r\n", [f"R{RECOVERY}", f"P{RECOVERY}"]),
        (b"\xff\xfe" + SAVED.encode("utf-16-le"), [f"R{RECOVERY}", f"P{SAVED.rstrip()}"]),
        (b"\xff\xff\xff", []),
    ],
)
def test_what_a_key_file_may_be(value: bytes, tried: list[str]) -> None:
    assert [attempt.decode() for attempt in _attempts(value)] == tried


@pytest.mark.parametrize("value", [PASSWORD.encode() + b"\n", b"\xff\xfe" + SAVED.encode("utf-16-le")])
def test_passwords_open_it(built: BuiltBitLocker, value: bytes) -> None:
    with closing(BitLocker(BytesReader(built.path.read_bytes()), "p", options(value).keys)) as volume:
        assert volume.reader is not None
        assert volume.reader.read_at(0, 1 << 20) == built.plain[: 1 << 20]


def test_the_tree_with_a_key(built: BuiltBitLocker, image: Path) -> None:
    with imagefs.open(image) as source, closing(source.tree("", options(built.startup_key))) as tree:
        assert {entry.name for entry in tree.entries(tree.resolve("disk0"))} == {
            "p1",
            "p1.raw",
            "p1.decrypted.raw",
        }
        check_files(tree)
        assert (
            tree.open_reader(tree.resolve("disk0/p1.raw")).read_at(0, 1 << 20)
            == built.path.read_bytes()[: 1 << 20]
        )
        whole = tree.open_reader(tree.resolve("disk0/p1.decrypted.raw"))
        assert whole.read_at(0, whole.size) == built.plain


def test_deleted_files_inside(tmp_path: Path) -> None:
    """What is free inside is not free outside: an image of used blocks has it."""
    content = noise(5, 0, 300_000)
    path = make_ntfs(tmp_path / "plain", 8 << 20, "inner")
    with mounted_ntfs(path) as root:
        (root / "kept").write_bytes(b"kept")
        (root / "gone.bin").write_bytes(content)
    with mounted_ntfs(path) as root:
        (root / "gone.bin").unlink()
    volume = write_bitlocker(tmp_path / "volume", path.read_bytes())
    done = run_imagefs("backup", volume.path, tmp_path / "set")
    assert done.code == 0, done.errors
    (image,) = (tmp_path / "set").glob("*.mrimgx")
    (tmp_path / "key").write_bytes(volume.startup_key)
    key = ("--volume-key", tmp_path / "key")
    listed = run_imagefs("ls", "--deleted", *key, image, "disk0/p1/$Deleted")
    assert listed.code == 0, listed.errors
    assert b"whole" in listed.output
    said = run_imagefs("cat", "--deleted", *key, image, "disk0/p1/$Deleted/gone.bin")
    assert said.output == content
    assert b"$Deleted" not in run_imagefs("ls", *key, image, "disk0/p1").output


def check_files(tree: ImageTree) -> None:
    import hashlib

    for name, content in FILES.items():
        assert sha256_of(tree, tree.resolve(f"disk0/p1/{name}")) == hashlib.sha256(content).hexdigest()


def test_locked(built: BuiltBitLocker, image: Path) -> None:
    with imagefs.open(image) as source:
        for keys, said in (
            (options(), "it is locked"),
            (options(b"wrong"), "none of the keys given opens it"),
        ):
            with closing(source.tree("", keys)) as tree:
                shown = [entry.name for entry in tree.entries(tree.resolve("disk0"))]
                assert shown == ["p1.raw", "p1"]
                with pytest.raises(PasswordError, match=said) as caught:
                    tree.entries(tree.resolve("disk0/p1"))
                for way in (
                    "password",
                    f"recovery password {built.recovery_id}".upper(),
                    "TPM",
                    "--BITLOCKER-KEY",
                ):
                    assert way.upper() in str(caught.value).upper()
    assert run_imagefs("ls", image, "disk0/p1").code == 5


def test_a_clear_key_needs_no_other(plain: bytes, tmp_path: Path) -> None:
    volume = write_bitlocker(tmp_path / "volume", plain, protectors=replace(STARTUP_ONLY, clear=True))
    with closing(BitLocker(BytesReader(volume.path.read_bytes()), "p")) as opened:
        assert opened.reader is not None
        assert opened.reader.read_at(0, 1 << 20) == plain[: 1 << 20]
        assert [protector.kind for protector in opened.protectors] == ["startup key", "clear key"]


def test_a_mount(built: BuiltBitLocker, image: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.bek"
    key.write_bytes(built.startup_key)
    with mounted(image, tmp_path / "mnt", "--bitlocker-key", str(key)) as mountpoint:
        for name, content in FILES.items():
            assert (mountpoint / "disk0/p1" / name).read_bytes() == content
        (tmp_path / "plain").write_bytes(built.plain)
        assert sha256_file(mountpoint / "disk0/p1.decrypted.raw") == sha256_file(tmp_path / "plain")


def test_info(image: Path) -> None:
    (part,) = json.loads(run_imagefs("info", "--json", image).output)["disks"][0]["partitions"]
    assert part["encryption"]["kind"] == "BitLocker"
    assert part["encryption"]["method"] == "AES-XTS 128"
    assert part["encryption"]["state"] == "locked"
    kinds = [protector["kind"] for protector in part["encryption"]["protectors"]]
    assert kinds == ["password", "recovery password", "startup key", "TPM"]
    assert "BitLocker, AES-XTS 128, locked" in run_imagefs("info", image).text


def test_recognised() -> None:
    for at, mark in ((3, b"-FVE-FS-"), (424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001"))):
        sector = bytearray(8192)
        sector[:3] = b"\xeb\x58\x90"
        sector[510:512] = b"\x55\xaa"
        sector[at : at + len(mark)] = mark
        assert is_bitlocker(BytesReader(bytes(sector)))
        assert recognise(BytesReader(bytes(sector))) == "BitLocker"
    assert not is_bitlocker(BytesReader(bytes(8192)))


def test_holes_of_an_image_are_not_decrypted(built: BuiltBitLocker) -> None:
    raw = built.path.read_bytes()
    pieces = [BytesReader(raw[: 4 << 20]), ZeroReader(65536), BytesReader(raw[(4 << 20) + 65536 :])]
    with closing(BitLocker(ConcatReader(pieces), "p", options(built.startup_key).keys)) as volume:
        assert volume.reader is not None
        assert volume.reader.read_at((4 << 20) - 4096, 4096) == built.plain[(4 << 20) - 4096 : 4 << 20]
        with pytest.raises(UnsupportedError, match="not in the image"):
            volume.reader.read_at((4 << 20) + 100, 10)


def mutations(built: BuiltBitLocker) -> Iterator[BlockReader]:
    """Yield the volume with bytes of its head and of all three metadata blocks changed alike."""
    raw = built.path.read_bytes()
    chance = random.Random(11)
    blocks = struct.unpack_from("<3Q", raw, 176)
    for _ in range(60):
        volume = bytearray(raw)
        for _ in range(chance.randrange(1, 4)):
            offset = chance.randrange(700)
            patch = chance.choice(
                (bytes([chance.randrange(256)]), b"\xff\xff", bytes(4), chance.randbytes(8))
            )
            places = [offset] if offset < SECTOR and chance.random() < 0.2 else [at + offset for at in blocks]
            for at in places:
                volume[at : at + len(patch)] = patch
        yield BytesReader(bytes(volume))


def test_random_damage_is_a_typed_error(built: BuiltBitLocker) -> None:
    outcomes = set()
    for volume in mutations(built):
        try:
            with closing(BitLocker(volume, "p", options(built.startup_key).keys)) as opened:
                if opened.reader is None:
                    outcomes.add("locked")
                else:
                    opened.reader.read_at(0, 1)
                    outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused", "locked"}


def test_other_file_systems_inside_are_told(tmp_path: Path) -> None:
    run("mkfs.vfat", "-C", tmp_path / "fat", "8192")
    volume = write_bitlocker(tmp_path / "volume", (tmp_path / "fat").read_bytes(), protectors=STARTUP_ONLY)
    with pytest.raises(DamagedError, match="no NTFS is inside: libbde reads nothing else"):
        BitLocker(BytesReader(volume.path.read_bytes()), "p", options(volume.startup_key).keys)


def test_damaged_metadata_of_an_image_are_told(built: BuiltBitLocker) -> None:
    volume = bytearray(built.path.read_bytes())
    for at in struct.unpack_from("<3Q", volume, 176):
        volume[at : at + 4096] = bytes(4096)
    with pytest.raises(DamagedError):
        BitLocker(BytesReader(bytes(volume)), "p")
