"""Who may read; nobody writes, and is told so in the way that Explorer understands."""

import struct
from typing import Any

import pytest

from tests.mounters.winfsp import nt
from tests.mounters.winfsp.adapting import (
    ADMINISTRATOR,
    MOUNTER,
    STRANGER,
    THE_SYSTEM,
    SmallTree,
    attributes_of,
    mounted,
    quiet,
)
from tests.mounters.winfsp.descriptors import USER, parse
from tests.mounters.winfsp.fake_driver import Handle, Volume, refused
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import Access, Disposition, Options, Status

READING = "0x1200a9"
WRITING = (
    Access.WRITE_DATA,
    Access.APPEND_DATA,
    Access.WRITE_EA,
    Access.DELETE_CHILD,
    Access.WRITE_ATTRIBUTES,
    Access.DELETE,
    Access.WRITE_DAC,
    Access.WRITE_OWNER,
    Access.GENERIC_WRITE,
    Access.GENERIC_ALL,
)
OPENS_THAT_WRITE = (0x2, 0x4, 0x10, 0x40, 0x100, 0x10000)


def test_the_mounting_user_the_system_and_administrators_read(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        for who in (MOUNTER, THE_SYSTEM, ADMINISTRATOR):
            assert volume.stat("\\one.bin", who).size == 12_345
            assert volume.list("\\dir", who=who)
        for path in ("\\one.bin", "\\", "\\dir"):
            with refused(Status.ACCESS_DENIED):
                volume.open(path, who=STRANGER)


def test_the_descriptor(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        for path in ("\\", "\\one.bin", "\\dir"):
            with volume.open(path) as handle:
                shown = volume.security(handle)
            assert shown == parse(volume.security_by_name(nt.upper(path))[1])
            said = shown.text()
            assert said.startswith("O:BAG:BAD:P(")
            entries = set(said.partition("(")[2].rstrip(")").split(")("))
            assert entries == {f"A;;{READING};;;{sid}" for sid in (USER, "SY", "BA", "OW")}


def test_the_descriptor_for_everyone(library: FakeLibrary) -> None:
    with mounted(library, SmallTree(), allow_other=True) as volume:
        assert volume.stat("\\one.bin", STRANGER).size == 12_345
        with volume.open("\\one.bin") as handle:
            said = volume.security(handle).text()
        assert said == f"O:BAG:BAD:P(A;;{READING};;;WD)(A;;{READING};;;OW)"


@pytest.mark.parametrize("who", [MOUNTER, ADMINISTRATOR, THE_SYSTEM])
def test_all_the_rights_that_one_has_are_to_read(library: FakeLibrary, who: Any) -> None:
    with mounted(library, SmallTree()) as volume:
        for path in ("\\one.bin", "\\dir"):
            with volume.open(path, Access.MAXIMUM_ALLOWED, who=who) as handle:
                assert handle.granted == 0x1200A9


@pytest.mark.parametrize("room", [0, 20, 100])
def test_a_descriptor_that_needs_a_second_question(library: FakeLibrary, room: int) -> None:
    with mounted(library, SmallTree()) as volume:
        volume.room = room
        assert volume.stat("\\one.bin").size == 12_345


def original(*aces: tuple[int, int, str]) -> bytes:
    """Return a descriptor as NTFS has it, owned by a user of another machine; none: a NULL list."""

    def sid(text: str) -> bytes:
        _, _, authority, *parts = text.split("-")
        head = struct.pack("<BB6s", 1, len(parts), int(authority).to_bytes(6, "big"))
        return head + b"".join(struct.pack("<I", int(part)) for part in parts)

    owner = sid("S-1-5-21-7-8-9-1000")
    entries = b"".join(
        struct.pack("<BBHI", kind, 0, 8 + len(sid(who)), mask) + sid(who) for kind, mask, who in aces
    )
    acl = struct.pack("<BBHHH", 2, 0, 8 + len(entries), len(aces), 0) + entries if aces else b""
    at = 20 + 2 * len(owner)
    control = 0x8004 if aces else 0x8000
    return struct.pack("<BBH4I", 1, 0, control, 20, 20 + len(owner), 0, at if aces else 0) + owner * 2 + acl


OWN = {
    "one.bin": original((0, 0x1F01FF, "S-1-5-21-7-8-9-1000"), (0, 0x1F01FF, USER)),
    "big.bin": original((1, 0x1F01FF, USER), (0, 0x1F01FF, "S-1-1-0")),
    "empty": original(),
    "dir": b"no descriptor",
}


class Original(SmallTree):
    """Files with descriptors of their own."""

    def extended_attribute(self, inode: int, name: str) -> bytes:
        for path, value in OWN.items():
            if name == "system.ntfs_acl" and inode == self.resolve(path):
                return value
        return super().extended_attribute(inode, name)


def test_original_descriptors(library: FakeLibrary) -> None:
    tree = Original()
    with mounted(library, tree, original_security=True) as volume:
        with volume.open("\\one.bin") as handle:
            assert volume.security(handle) == parse(OWN["one.bin"])
        with refused(Status.ACCESS_DENIED):
            volume.open("\\big.bin")
        volume.open("\\big.bin", who=STRANGER).close()
        volume.open("\\dir", who=MOUNTER).close()  # unusable: ours
        with refused(Status.ACCESS_DENIED):
            volume.open("\\dir", who=STRANGER)
        # Rights of the original to write don't open anything that the mount would refuse.
        for path in ("\\one.bin", "\\empty"):
            with volume.open(path, Access.MAXIMUM_ALLOWED) as handle:
                assert handle.granted & ~0x1200A9 == 0
            with refused(Status.ACCESS_DENIED):
                volume.open(path, Access.WRITE_DATA)


def test_original_descriptors_are_only_shown_on_request(library: FakeLibrary) -> None:
    with mounted(library, Original()) as volume:
        volume.open("\\big.bin").close()


@pytest.mark.parametrize("access", WRITING)
def test_writers_are_denied_before_they_reach_the_adapter(library: FakeLibrary, access: Access) -> None:
    with mounted(library, SmallTree()) as volume:
        for who in (MOUNTER, ADMINISTRATOR, THE_SYSTEM):
            for path in ("\\one.bin", "\\dir"):
                volume.calls.clear()
                with refused(Status.ACCESS_DENIED):
                    volume.open(path, access | Access.SYNCHRONIZE, who=who)
                assert volume.calls == ["GetSecurityByName"]


@pytest.mark.parametrize("access", OPENS_THAT_WRITE)
def test_openings_for_writing_from_within_the_kernel(library: FakeLibrary, access: int) -> None:
    """No access check comes before them; what was let in would be lost in Windows' cache."""
    with mounted(library, SmallTree()) as volume:
        for path in ("\\one.bin", "\\dir", "\\"):
            with refused(Status.MEDIA_WRITE_PROTECTED):
                volume.open(path, access | nt.READ, kernel=True)
        assert volume.leaked == 0


@pytest.mark.parametrize(
    "disposition", [Disposition.SUPERSEDE, Disposition.OVERWRITE, Disposition.OVERWRITE_IF]
)
def test_openings_that_replace(library: FakeLibrary, disposition: Disposition) -> None:
    with mounted(library, SmallTree()) as volume:
        with refused(Status.MEDIA_WRITE_PROTECTED):
            volume.open("\\one.bin", nt.READ, disposition=disposition, kernel=True)
        with refused(Status.ACCESS_DENIED):
            volume.open("\\one.bin", nt.READ, disposition=disposition)


def test_openings_that_delete(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        with refused(Status.MEDIA_WRITE_PROTECTED):
            volume.open("\\one.bin", nt.READ, Options.DELETE_ON_CLOSE, kernel=True)
        with refused(Status.ACCESS_DENIED):
            volume.open("\\one.bin", nt.READ, Options.DELETE_ON_CLOSE)


def test_opening_what_is_there_or_else_creating_it(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        volume.open("\\one.bin", disposition=Disposition.OPEN_IF).close()
        for kernel in (False, True):
            with refused(Status.ACCESS_DENIED):
                volume.open("\\new", disposition=Disposition.OPEN_IF, kernel=kernel)


@pytest.mark.parametrize("directory", [False, True])
def test_creating(library: FakeLibrary, directory: bool) -> None:
    """MEDIA_WRITE_PROTECTED would be a "catastrophic failure" to Explorer."""
    with mounted(library, SmallTree()) as volume:
        for kernel in (False, True):
            for path in ("\\new", "\\dir\\new", "\\dir\\sub\\new"):
                with refused(Status.ACCESS_DENIED):
                    volume.create(path, directory=directory, kernel=kernel)
        assert volume.leaked == 0


CHANGES = {
    "write": lambda volume, handle: volume.write(handle, 0, b"data"),
    "overwrite": lambda volume, handle: volume.overwrite(handle),
    "size": lambda volume, handle: volume.set_size(handle, 0),
    "times": lambda volume, handle: volume.set_times(handle),
    "delete": lambda volume, handle: volume.delete(handle),
    "rename": lambda volume, handle: volume.rename(handle, "\\other"),
    "replace": lambda volume, handle: volume.rename(handle, "\\big.bin", replace=True),
    "security": lambda volume, handle: volume.set_security(handle, bytes(20)),
    "label": lambda volume, handle: volume.set_label("other"),
    "reparse point": lambda volume, handle: volume.set_reparse_point(handle, bytes(20)),
    "no reparse point": lambda volume, handle: volume.delete_reparse_point(handle, bytes(20)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes(library: FakeLibrary, change: str) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        for path in ("\\one.bin", "\\dir"):
            with volume.open(path) as handle:
                before = volume.info(handle)
                with refused(Status.MEDIA_WRITE_PROTECTED):
                    CHANGES[change](volume, handle)
                assert volume.info(handle) == before
        assert volume.content("\\one.bin") == tree.bytes_of("one.bin")
        assert volume.volume_info()[2] == ""


def test_flushing_changes_nothing(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume, volume.open("\\one.bin") as handle:
        volume.flush(handle)


def test_a_read_only_file_is_no_reason_to_fail(library: FakeLibrary) -> None:
    tree = SmallTree()
    attributes_of(tree, "one.bin", file_attributes=0x21)
    with quiet(), mounted(library, tree) as volume:
        assert volume.content("\\one.bin") == tree.bytes_of("one.bin")


def test_handles_are_what_they_were_granted(library: FakeLibrary) -> None:
    """A handle for attributes alone reads no bytes: the driver's own rule, which the tests hold to."""
    with mounted(library, SmallTree()) as volume:
        handle: Handle = volume.open("\\one.bin", Access.READ_ATTRIBUTES)
        with refused(Status.ACCESS_DENIED):
            Volume.read(volume, handle, 0, 1)
        handle.close()
