"""The stand-ins themselves: they catch what an adapter may do wrong, in winfspy's real code."""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.mounters.winfsp import nt
from tests.mounters.winfsp.descriptors import caller, check_access, parse
from tests.mounters.winfsp.fake_driver import Volume, refused
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import NtError, Status

EVERYONE = struct.pack("<BB6sI", 1, 1, (1).to_bytes(6, "big"), 0)
ACE = struct.pack("<BBHI", 0, 0, 8 + len(EVERYONE), nt.ALL) + EVERYONE
ACL = struct.pack("<BBHHH", 2, 0, 8 + len(ACE), 1, 0) + ACE
DESCRIPTOR = struct.pack("<BBH4I", 1, 0, 0x9004, 20, 20, 0, 20 + len(EVERYONE)) + EVERYONE + ACL
WORDS = "D:P(A;;FA;;;WD)"
PARAMETERS = {
    "sector_size": 512,
    "sectors_per_allocation_unit": 8,
    "max_component_length": 255,
    "case_preserved_names": 1,
    "unicode_on_disk": 1,
    "um_file_context_is_user_context2": 1,
    "post_cleanup_when_modified_only": 1,
    "volume_serial_number": 0x12345678,
    "file_info_timeout": 0xFFFFFFFF,
    "file_system_name": "imagefs, too long",
}


def operations(**changes: object) -> Any:
    """Return a file system of one file and one directory, with methods of a test's own."""
    import winfspy
    from winfspy.plumbing import NTSTATUS

    class Tiny(winfspy.BaseFileSystemOperations):  # type: ignore[misc]
        names = ("a", "b")
        size = 10

        def get_volume_info(self) -> dict[str, Any]:
            return {"total_size": 4096, "free_size": 0, "volume_label": "Tiny ü"}

        def get_security_by_name(self, name: str) -> tuple[int, Any, int]:
            if name not in ("\\", "\\A", "\\DIR"):
                raise winfspy.NTStatusObjectNameNotFound()
            return (0x20 if name == "\\A" else 0x10), DESCRIPTOR, len(DESCRIPTOR)

        def open(self, name: str, options: int, access: int) -> Any:
            return [name]

        def close(self, context: Any) -> None:
            pass

        def get_file_info(self, context: Any) -> dict[str, int]:
            if context == ["\\A"]:
                return self.info()
            return {"file_attributes": 0x10, "index_number": 1}

        def info(self) -> dict[str, int]:
            return {
                "file_attributes": 0x20,
                "file_size": self.size,
                "allocation_size": 4096,
                "index_number": 2,
            }

        def read(self, context: Any, offset: int, length: int) -> bytes:
            if offset >= self.size:
                raise winfspy.NTStatusEndOfFile()
            return b"0123456789"[offset : offset + length]

        def read_directory(self, context: Any, marker: str | None) -> Iterator[dict[str, Any]]:
            for name in self.names:
                if marker is None or name > marker:
                    yield {"file_name": name, **self.info()}

        def get_security(self, context: Any) -> tuple[Any, int]:
            return DESCRIPTOR, len(DESCRIPTOR)

        def write(self, *_: object) -> int:
            raise winfspy.NTStatusError(NTSTATUS.STATUS_MEDIA_WRITE_PROTECTED)

    return type("Changed", (Tiny,), changes)()


@contextmanager
def mounted(library: FakeLibrary, tiny: Any, **parameters: Any) -> Iterator[Volume]:
    import winfspy

    system = winfspy.FileSystem("X:", tiny, **{**PARAMETERS, **parameters})
    system.start()
    try:
        yield Volume(library.volumes[-1])
    finally:
        system.stop()


def caught(library: FakeLibrary, *words: str) -> None:
    """Check that exactly these faults were found."""
    found = library.faults.take()
    assert found
    assert all(any(word in fault for word in words) for fault in found), found
    assert all(any(word in fault for fault in found) for word in words), found


def test_a_healthy_volume(library: FakeLibrary) -> None:
    with mounted(library, operations()) as volume:
        assert volume.volume_info() == (4096, 0, "Tiny ü")
        assert volume.parameter("FileSystemName") == "imagefs"
        assert volume.parameter("VolumeSerialNumber") == 0x12345678
        assert volume.parameter("FileInfoTimeout") == 0xFFFFFFFF
        assert [entry.name for entry in volume.list("\\")] == ["a", "b"]
        assert volume.content("\\a", 3) == b"0123456789"
        assert volume.stat("\\a").size == 10
        with volume.open("\\a") as handle:
            assert volume.security(handle).text() == "O:WDG:WDD:P(A;;0x1f01ff;;;WD)"
            with refused(Status.MEDIA_WRITE_PROTECTED):
                volume.write(handle, 0, b"x")
        with refused(Status.OBJECT_NAME_NOT_FOUND):
            volume.open("\\none")
        with refused(Status.OBJECT_NAME_INVALID):
            volume.open("\\a:stream")
        assert volume.leaked == 0
    with pytest.raises(NtError, match="VOLUME_DISMOUNTED"):
        volume.volume_info()


def test_flags_lie_where_the_header_has_them(library: FakeLibrary) -> None:
    chosen = {"persistent_acls", "read_only_volume", "um_file_context_is_user_context2", "device_control"}
    off = {"named_streams", "reparse_points", "case_sensitive_search", "pass_query_directory_file_name"}
    with mounted(library, operations(), **dict.fromkeys(chosen, 1)) as volume:
        assert {name for name in chosen | off if volume.flag(name)} == chosen


def test_callbacks_come_from_native_threads(library: FakeLibrary) -> None:
    names = []

    def close(self: Any, context: Any) -> None:
        names.append(threading.current_thread().name)

    with mounted(library, operations(close=close)) as volume:
        volume.stat("\\a")
    assert "Dummy" in names[-1]


def test_a_read_longer_than_asked(library: FakeLibrary) -> None:
    with (
        mounted(library, operations(read=lambda *_: b"0123456789")) as volume,
        volume.open("\\a") as handle,
    ):
        volume.read(handle, 0, 4)
    caught(library, "written beside the buffer", "told of 10 bytes")


def test_a_context_whose_close_fails(library: FakeLibrary) -> None:
    def close(self: Any, context: Any) -> None:
        raise ValueError("in close")

    with mounted(library, operations(close=close)) as volume:
        volume.open("\\a").close()
        assert volume.leaked == 2  # with that of winfspy's own question at the start
    caught(library, "in close")


def test_a_context_whose_open_fails_late(library: FakeLibrary) -> None:
    def info(self: Any) -> dict[str, int]:
        import winfspy

        raise winfspy.NTStatusAccessDenied()

    with mounted(library, operations(info=info)) as volume:
        with refused(Status.ACCESS_DENIED):
            volume.open("\\a")
        assert volume.leaked == 1


def test_a_descriptor_that_was_freed(library: FakeLibrary) -> None:
    library.descriptors[WORDS] = DESCRIPTOR

    def security(self: Any, name: str) -> tuple[int, Any, int]:
        from winfspy.plumbing import SecurityDescriptor

        descriptor = SecurityDescriptor.from_string(WORDS) if name == "\\A" else None
        size = descriptor.size if descriptor else len(DESCRIPTOR)
        return 0x20 if descriptor else 0x10, descriptor.handle if descriptor else DESCRIPTOR, size

    with (
        mounted(library, operations(get_security_by_name=security)) as volume,
        refused(Status.INVALID_SECURITY_DESCR),
    ):
        volume.open("\\a")
    caught(library, "no security descriptor")


def test_a_descriptor_larger_than_the_room(library: FakeLibrary) -> None:
    with mounted(library, operations()) as volume:
        volume.room = 16
        assert volume.security_by_name("\\A") == (0x20, DESCRIPTOR)
        assert volume.calls == ["GetSecurityByName"] * 2


def test_an_endless_listing(library: FakeLibrary) -> None:
    def forever(self: Any, context: Any, marker: str | None) -> Iterator[dict[str, Any]]:
        while True:
            yield {"file_name": "a", **self.info()}

    with mounted(library, operations(read_directory=forever)) as volume, refused(Status.FILE_CORRUPT_ERROR):
        volume.list("\\")
    caught(library, "listed twice")


def test_markers_that_are_not_passed(library: FakeLibrary) -> None:
    def first(self: Any, context: Any, marker: str | None) -> Iterator[dict[str, Any]]:
        return ({"file_name": f"{number:04}", **self.info()} for number in range(1000))

    with mounted(library, operations(read_directory=first)) as volume, refused(Status.FILE_CORRUPT_ERROR):
        volume.list("\\")
    caught(library, "listed twice")


def test_names_that_differ_in_case_only(library: FakeLibrary) -> None:
    with mounted(library, operations(names=("A", "a"))) as volume, refused(Status.FILE_CORRUPT_ERROR):
        volume.list("\\")
    caught(library, "listed twice")


def test_a_name_that_is_too_long(library: FakeLibrary) -> None:
    with mounted(library, operations(names=("a", "b" * 256))) as volume, refused(Status.OBJECT_NAME_INVALID):
        volume.list("\\")


def test_a_name_that_cannot_be_encoded(library: FakeLibrary) -> None:
    with mounted(library, operations(names=("a", "b\udcff"))) as volume, refused(Status.UNEXPECTED_IO_ERROR):
        volume.list("\\")
    caught(library, "surrogates not allowed", "ReadDirectory: the adapter's own fault")


def test_a_name_that_cannot_be_opened(library: FakeLibrary) -> None:
    with mounted(library, operations(names=("a", "b:c"))) as volume:
        volume.list("\\")
    caught(library, "can't be opened")


def test_a_failure_within_a_listing(library: FakeLibrary) -> None:
    def failing(self: Any, context: Any, marker: str | None) -> Iterator[dict[str, Any]]:
        import winfspy

        yield {"file_name": "a", **self.info()}
        raise winfspy.NTStatusAccessDenied()

    with mounted(library, operations(read_directory=failing)) as volume, refused(Status.UNEXPECTED_IO_ERROR):
        volume.list("\\")
    caught(library, "NTStatusAccessDenied", "adapter's own fault")


def test_dots_where_they_belong(library: FakeLibrary) -> None:
    with mounted(library, operations()) as volume:
        volume.list("\\dir")
    caught(library, "in the listing of \\DIR")


def test_an_allocation_that_is_no_multiple(library: FakeLibrary) -> None:
    info = {"file_attributes": 0x20, "file_size": 10, "allocation_size": 10}
    with mounted(library, operations(info=lambda self: info)) as volume:
        volume.stat("\\a")
    caught(library, "10 bytes allocated")


def test_contexts_of_files_instead_of_handles(library: FakeLibrary) -> None:
    with mounted(library, operations(), um_file_context_is_user_context2=0):
        pass
    caught(library, "contexts belong to files")


def test_a_method_that_is_not_there(library: FakeLibrary) -> None:
    with (
        mounted(library, operations()) as volume,
        volume.open("\\a") as handle,
        refused(Status.UNEXPECTED_IO_ERROR),
    ):
        volume.rename(handle, "\\b")
    caught(library, "NotImplementedError", "Rename: the adapter's own fault")


def test_a_stop_from_a_callback(library: FakeLibrary) -> None:
    def close(self: Any, context: Any) -> None:
        from winfspy.plumbing import lib

        lib.FspFileSystemStopDispatcher(library.volumes[-1].pointer)

    with mounted(library, operations(close=close)):
        pass
    caught(library, "StopDispatcher called from a callback")


def test_use_of_what_was_deleted(library: FakeLibrary) -> None:
    import winfspy
    from winfspy.plumbing import ffi, lib

    system = winfspy.FileSystem("X:", operations(), **PARAMETERS)
    system.start()
    pointer = system._file_system_ptr[0]
    lib.FspFileSystemDelete(pointer)
    caught(library, "dispatcher runs")
    system.stop()
    lib.FspFileSystemGetDispatcherResultF(pointer, ffi.new("NTSTATUS *"))
    caught(library, "not there")


def test_calls_after_the_stop(library: FakeLibrary) -> None:
    with mounted(library, operations()) as volume:
        handle = volume.open("\\a")
    with refused(Status.VOLUME_DISMOUNTED):
        volume.read(handle, 0, 1)
    handle.close()


def test_a_stop_waits_for_what_runs(library: FakeLibrary) -> None:
    began, go, ended = threading.Event(), threading.Event(), []

    def read(self: Any, context: Any, offset: int, length: int) -> bytes:
        began.set()
        go.wait(10)
        ended.append(threading.get_ident())
        return b"x"

    with mounted(library, operations(read=read)) as volume:
        handle = volume.open("\\a")
        reader = threading.Thread(target=volume.read, args=(handle, 0, 1))
        reader.start()
        assert began.wait(10)
        threading.Timer(0.1, go.set).start()
    assert ended
    reader.join(10)


def test_a_letter_in_use(library: FakeLibrary) -> None:
    import winfspy

    library.letters_in_use.add("X:")
    system = winfspy.FileSystem("X:", operations(), **PARAMETERS)
    with pytest.raises(winfspy.WinFSPyError, match="NAME_COLLISION"):
        system.start()
    system.stop()


def test_numbers_that_do_not_fit(library: FakeLibrary) -> None:
    import winfspy

    with pytest.raises(OverflowError):
        winfspy.FileSystem("X:", operations(), **{**PARAMETERS, "file_info_timeout": -1})


def test_access_as_windows_judges_it() -> None:
    """[MS-DTYP] 2.5.3.2: what an owner has by itself, and what the owner rights' entry leaves of it."""
    descriptor = parse(DESCRIPTOR)
    assert check_access(descriptor, caller("S-1-5-21-1"), 0x80000000) == 0x120089
    assert check_access(descriptor, caller("S-1-5-21-1"), nt.Access.MAXIMUM_ALLOWED) == 0x1F01FF
    owner = struct.pack("<BB6sII", 1, 2, (5).to_bytes(6, "big"), 32, 544)
    rights = struct.pack("<BB6sI", 1, 1, (3).to_bytes(6, "big"), 4)
    for limited, expected in ((False, 0x1600A9), (True, 0x1200A9)):
        sids = [EVERYONE, rights] if limited else [EVERYONE]
        aces = b"".join(struct.pack("<BBHI", 0, 0, 20, 0x1200A9) + sid for sid in sids)
        acl = struct.pack("<BBHHH", 2, 0, 8 + len(aces), len(sids), 0) + aces
        made = parse(struct.pack("<BBH4I", 1, 0, 0x9004, 20, 20, 0, 36) + owner + acl)
        assert check_access(made, caller("S-1-5-32-544"), nt.Access.MAXIMUM_ALLOWED) == expected
    assert made.text() == "O:BAG:BAD:P(A;;0x1200a9;;;WD)(A;;0x1200a9;;;OW)"
    with refused(Status.ACCESS_DENIED):
        check_access(made, caller("S-1-5-32-544"), nt.Access.WRITE_DATA)


def test_upper_case_as_windows_has_it() -> None:
    """54 characters of the first plane differ from the one-to-one part of Unicode's upper case."""
    differing = 0
    for number in range(0x10000):
        character = chr(number)
        plain = character.upper()
        if len(plain) != 1 or ord(plain) > 0xFFFF:
            plain = character
        differing += plain != nt.upper(character)
    assert differing == 54
    assert nt.upper("straße ÿ 𐐨") == "STRAßE Ÿ 𐐨"


def test_reads_that_never_end(library: FakeLibrary) -> None:
    with (
        mounted(library, operations(read=lambda *_: b"")) as volume,
        refused(Status.UNEXPECTED_IO_ERROR),
    ):
        volume.content("\\a")
    caught(library, "no bytes and no end of file")
