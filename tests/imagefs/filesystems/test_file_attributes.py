"""What Windows says of a file beyond its type, set by other tools: FILE_ATTRIBUTE_*, [MS-FSCC] 2.6."""

from pathlib import Path

from fixtures.partition_tables import create_file
from fixtures.tools import run
from fixtures.volumes import make_ntfs, mounted_exfat, mounted_ntfs, mtools, set_xattr
from formats.blockreader import BytesReader, FileReader
from imagefs.filesystems import FileSystem
from imagefs.filesystems.detect import open_file_system

READONLY, HIDDEN, SYSTEM, DIRECTORY, ARCHIVE, NOT_CONTENT_INDEXED = 0x1, 0x2, 0x4, 0x10, 0x20, 0x2000


def shown(volume: FileSystem | None) -> dict[str, int | None]:
    """Return the attributes of what is in the root, as a listing and as each node tells them."""
    assert volume is not None
    listed = {
        entry.name: attributes.file_attributes
        for entry, attributes in volume.entries_with_attributes(volume.root)
        if attributes is not None
    }
    asked = {
        entry.name: volume.attributes(entry.inode).file_attributes for entry in volume.entries(volume.root)
    }
    assert listed == asked
    return listed


def test_fat(tmp_path: Path) -> None:
    image = create_file(tmp_path / "fat.img", 6 << 20)
    run("mkfs.vfat", "-F", "12", image)
    for name in ("plain", "hidden", "system.txt", "read only"):
        (tmp_path / name).write_bytes(b"x")
        mtools("mcopy", image, tmp_path / name, f"::/{name}")
    mtools("mmd", image, "::/folder")
    mtools("mattrib", image, "-a", "::/plain")
    mtools("mattrib", image, "+h", "::/hidden")
    mtools("mattrib", image, "+s", "+h", "-a", "::/system.txt")
    mtools("mattrib", image, "+r", "::/read only")
    mtools("mattrib", image, "+h", "::/folder")
    assert shown(open_file_system(BytesReader(image.read_bytes()))) == {
        "plain": 0,
        "hidden": HIDDEN | ARCHIVE,
        "system.txt": HIDDEN | SYSTEM,
        "read only": READONLY | ARCHIVE,
        "folder": DIRECTORY | HIDDEN,
    }


def test_exfat(tmp_path: Path) -> None:
    image = create_file(tmp_path / "exfat.img", 16 << 20)
    run("mkfs.exfat", image)
    with mounted_exfat(image) as root:
        (root / "file").write_bytes(b"x")
        (root / "folder").mkdir()
    assert shown(open_file_system(BytesReader(image.read_bytes()))) == {"file": ARCHIVE, "folder": DIRECTORY}


def test_ntfs(tmp_path: Path) -> None:
    image = make_ntfs(tmp_path / "ntfs.img", 16 << 20, "attributes")
    expected = {
        "hidden": HIDDEN | ARCHIVE,
        "system.txt": SYSTEM | HIDDEN | NOT_CONTENT_INDEXED,
        "read only": READONLY,
        "with a stream": HIDDEN,  # its record is parsed as a whole
        "folder": HIDDEN | SYSTEM,
    }
    with mounted_ntfs(image) as root:
        for name, attributes in expected.items():
            if name == "folder":
                (root / name).mkdir()
            else:
                (root / name).write_bytes(b"x")
            if "stream" in name:
                set_xattr(root / name, "user.stream", bytes(5000))
            set_xattr(root / name, "system.ntfs_attrib_be", attributes.to_bytes(4, "big"))
    with FileReader(image) as reader:
        volume = open_file_system(reader)
        found = shown(volume)
        assert volume is not None
        stored = int.from_bytes(volume.extended_attribute(volume.root, "system.ntfs_attrib"), "little")
        assert stored & (HIDDEN | SYSTEM) == HIDDEN | SYSTEM
        assert (
            volume.attributes(volume.root).file_attributes == 0
        )  # or the folder of a volume would not be seen
    known = READONLY | HIDDEN | SYSTEM | ARCHIVE | NOT_CONTENT_INDEXED
    assert {name: (attributes or 0) & known for name, attributes in found.items()} == expected
