"""Opening, finding, what is said of files; which status for what."""

import errno
import threading
from typing import Any

import pytest

from tests.mounters.memory_tree import MIB, DamagedBlockError
from tests.mounters.winfsp import nt
from tests.mounters.winfsp.adapting import (
    CountingTree,
    NamesTree,
    SmallTree,
    attributes_of,
    file_with,
    mounted,
    quiet,
)
from tests.mounters.winfsp.descriptors import caller
from tests.mounters.winfsp.fake_driver import refused
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import Access, Attribute, NtError, Options, Status

EPOCH = 116_444_736_000_000_000  # 1970-01-01 as FILETIME: 134,774 days of 864,000,000,000


def test_information(library: FakeLibrary) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        for name in ("one.bin", "big.bin", "empty", "sparse.bin", "zero.bin", "setuid.bin"):
            known, info = tree.attributes(tree.resolve(name)), volume.stat(f"\\{name}")
            assert info.size == known.size
            assert info.created == EPOCH + known.created // 100
            assert info.written == EPOCH + known.modified // 100
            assert info.accessed == EPOCH + known.accessed // 100
            assert info.changed == EPOCH + known.changed // 100  # in 1969
            assert known.inode in (info.index, 0)
            assert info.allocated % 4096 == 0
            assert not info.attributes & Attribute.DIRECTORY
        assert volume.stat("\\").attributes & Attribute.DIRECTORY
        assert volume.stat("\\dir").attributes & Attribute.DIRECTORY
        assert volume.stat("\\dir").size == 0


def test_times_outside_of_what_windows_counts(library: FakeLibrary) -> None:
    tree = SmallTree()
    attributes_of(tree, "one.bin", created=-(10**9) * 86400 * 365 * 400, modified=2**63 * 90)
    with mounted(library, tree) as volume:
        info = volume.stat("\\one.bin")
        assert info.created == 0
        assert 0 < info.written < 2**63


@pytest.mark.parametrize("size", [-1, -(2**63), 2**63, 2**64 - 1, 2**64, 2**80])
def test_a_size_that_cannot_be(library: FakeLibrary, size: int) -> None:
    """Damage can make any size of a file: its directory is listed all the same, it is not shown as empty."""
    tree = SmallTree()
    attributes_of(tree, "one.bin", size=size)
    tree.link(tree.root, "to one", "one.bin")
    with mounted(library, tree) as volume:
        assert {"one.bin", "big.bin", "to one"} <= {entry.name for entry in volume.list("\\")}
        for name in ("\\one.bin", "\\to one"):
            for ask in (volume.open, volume.find, volume.stat):
                with refused(Status.FILE_CORRUPT_ERROR):
                    ask(name)


def test_numbers_of_files_are_never_0_and_never_the_same(library: FakeLibrary) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        found = volume.list("\\")
        numbers = [entry.info.index for entry in found if entry.name != "link"]
        assert all(numbers)
        assert len(set(numbers)) == len(numbers)
        assert volume.stat("\\zero.bin").index == volume.find("\\zero.bin").info.index


def test_hidden_and_system_files(library: FakeLibrary) -> None:
    tree = SmallTree()
    attributes_of(tree, "one.bin", file_attributes=0x27)  # read-only, hidden, system, archive
    attributes_of(tree, "dir", file_attributes=0x12)
    attributes_of(tree, "big.bin", file_attributes=0xFFFFFFFF & ~0x10)
    with mounted(library, tree) as volume:
        for info in (volume.stat("\\one.bin"), volume.find("\\one.bin").info):
            assert info.attributes & 0x27 == 0x27
        assert volume.stat("\\dir").attributes & 0x12 == 0x12
        # What would change how a file is read, or makes it another kind of thing, is not passed on.
        special = (
            Attribute.REPARSE_POINT | Attribute.ENCRYPTED | Attribute.COMPRESSED | Attribute.SPARSE | 0x1000
        )
        assert not volume.stat("\\big.bin").attributes & (special | Attribute.DIRECTORY)


def test_attributes_that_no_file_gets(library: FakeLibrary) -> None:
    """READONLY would be copied along; without NOT_CONTENT_INDEXED the indexer reads the whole image."""
    with mounted(library, SmallTree()) as volume:
        for _, entry in volume.walk():
            assert not entry.info.attributes & Attribute.READONLY
            assert entry.info.attributes & Attribute.NOT_CONTENT_INDEXED
        assert volume.stat("\\").attributes & Attribute.NOT_CONTENT_INDEXED


def test_one_file_is_said_to_be_the_same_everywhere(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        for entry in volume.list("\\"):
            if entry.name == "lost.bin":
                continue
            assert volume.find(f"\\{entry.name}") == entry
            assert volume.stat(f"\\{entry.name}") == entry.info
            attributes, _ = volume.security_by_name(f"\\{nt.upper(entry.name)}")
            assert attributes == entry.info.attributes


def test_links(library: FakeLibrary) -> None:
    """No reparse points: a link is what it leads to; one that leads nowhere holds its target."""
    tree = SmallTree()
    tree.link(tree.root, "to dir", "dir/sub")
    tree.link(tree.resolve("dir"), "up", "..")
    tree.link(tree.root, "absolute", "/etc/passwd")
    tree.link(tree.root, "out", "../../etc/passwd")
    tree.link(tree.root, "circle", "circle")
    with mounted(library, tree) as volume:
        assert volume.content("\\link") == tree.bytes_of("dir/sub/leaf.txt")
        assert [entry.name for entry in volume.list("\\to dir")] == ["leaf.txt"]
        assert volume.content("\\to dir\\leaf.txt") == tree.bytes_of("dir/sub/leaf.txt")
        assert volume.content("\\dangling") == b"nowhere/\xff"
        assert volume.stat("\\dangling").size == 9
        assert volume.content("\\absolute") == b"/etc/passwd"
        assert volume.content("\\out") == b"../../etc/passwd"
        assert volume.content("\\circle") == b"circle"
        assert volume.content("\\dir\\up") == b".."
        assert len(list(volume.walk("\\dir"))) == 3, "no link makes the tree endless"
        assert not any(entry.info.attributes & Attribute.REPARSE_POINT for _, entry in volume.walk("\\dir"))


def test_a_link_to_what_cannot_be_read(library: FakeLibrary) -> None:
    """It is listed; opening it tells why."""
    tree = SmallTree()
    tree.link(tree.root, "to lost", "lost.bin")
    with quiet(), mounted(library, tree) as volume:
        assert {"to lost", "one.bin"} <= {entry.name for entry in volume.list("\\")}
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume.open("\\to lost")


def test_what_is_neither_file_nor_directory(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        assert not volume.stat("\\socket").is_directory
        with refused(Status.ACCESS_DENIED):
            volume.content("\\socket")


def test_a_reparse_point_that_is_none(library: FakeLibrary) -> None:
    with (
        mounted(library, SmallTree()) as volume,
        volume.open("\\link") as handle,
        refused(Status.NOT_A_REPARSE_POINT),
    ):
        volume.reparse_point(handle)


def test_names_that_are_not_there(library: FakeLibrary) -> None:
    """ERROR_FILE_NOT_FOUND for the last part, ERROR_PATH_NOT_FOUND for one before it."""
    with mounted(library, SmallTree()) as volume:
        for path in ("\\none", "\\dir\\none", "\\dir\\sub\\none"):
            with refused(Status.OBJECT_NAME_NOT_FOUND):
                volume.open(path)
        for path in (
            "\\none\\x",
            "\\dir\\none\\x",
            "\\one.bin\\x",
            "\\dir\\sub\\leaf.txt\\x\\y",
            "\\link\\x",
        ):
            with refused(Status.OBJECT_PATH_NOT_FOUND):
                volume.open(path)
        with refused(Status.NO_SUCH_FILE):
            volume.find("\\none")


def test_a_file_is_not_listed_and_a_directory_not_read(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        with refused(Status.NOT_A_DIRECTORY):
            volume.list("\\one.bin")
        with refused(Status.FILE_IS_A_DIRECTORY):
            volume.content("\\dir")
        with volume.open("\\one.bin") as file, refused(Status.NOT_A_DIRECTORY):
            volume.read_directory(file)
        with volume.open("\\one.bin") as file, refused(Status.NOT_A_DIRECTORY):
            volume.find_in(file, "x")
        with (
            volume.open("\\dir") as directory,
            refused(Status.FILE_IS_A_DIRECTORY, Status.INVALID_DEVICE_REQUEST),
        ):
            volume.read(directory, 0, 10)


def test_the_kind_asked_for_is_checked_by_the_adapter_too(library: FakeLibrary) -> None:
    """Between the driver's question and the opening nothing else is asked: both say the same."""
    with mounted(library, SmallTree()) as volume:
        with refused(Status.NOT_A_DIRECTORY):
            volume._opened("\\one.bin", "Open", (Options.DIRECTORY_FILE | 1 << 24, nt.READ))
        with refused(Status.FILE_IS_A_DIRECTORY):
            volume._opened("\\dir", "Open", (Options.NON_DIRECTORY_FILE | 1 << 24, nt.READ))


def test_a_node_that_cannot_be_read(library: FakeLibrary) -> None:
    """Its opening fails, and leaves no context; the directory around it is listed all the same."""
    with quiet(), mounted(library, SmallTree()) as volume:
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume.open("\\lost.bin")
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume._opened("\\lost.bin", "Open", (1 << 24, nt.READ))
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume.find("\\lost.bin")
        assert "lost.bin" in [entry.name for entry in volume.list("\\")]
        assert volume.leaked == 0
        assert volume.content("\\one.bin")


class Failing(SmallTree):
    """A directory that can't be listed, for a reason that the test gives."""

    error: Exception = DamagedBlockError("its index has a bad hash")

    def entries(self, inode: int) -> Any:
        if inode == self.nodes[self.root].children["dir"]:
            raise self.error
        return super().entries(inode)


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (DamagedBlockError("bad hash"), (Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR)),
        (OSError(5, "Input/output error"), (Status.IO_DEVICE_ERROR,)),
        (OSError(errno.EHOSTUNREACH, "No route to host"), (Status.HOST_UNREACHABLE,)),
        (OSError(13, "Permission denied"), (Status.ACCESS_DENIED,)),
        (RuntimeError("a fault of the tree"), (Status.IO_DEVICE_ERROR, Status.FILE_CORRUPT_ERROR)),
        (OSError(70_000, "no number"), (Status.IO_DEVICE_ERROR, Status.FILE_CORRUPT_ERROR)),
        (KeyError("a fault of the tree"), (Status.IO_DEVICE_ERROR, Status.FILE_CORRUPT_ERROR)),
        (MemoryError(), tuple(Status)),
    ],
)
def test_a_directory_that_cannot_be_read(
    library: FakeLibrary, error: Exception, statuses: tuple[Status, ...]
) -> None:
    """A status of its own, no traceback of winfspy's, nothing else broken."""
    tree = Failing()
    tree.error = error
    with quiet(), mounted(library, tree) as volume:
        with refused(*statuses):
            volume.list("\\dir")
        with refused(*statuses):
            volume.open("\\dir\\sub")
        with refused(*statuses):
            volume.find("\\dir\\sub")
        assert volume.content("\\one.bin")
        assert volume.leaked == 0


def test_a_damaged_directory_of_attributes(library: FakeLibrary) -> None:
    """What fails within a listing comes out before the first entry is given."""

    class Broken(SmallTree):
        def entries_with_attributes(self, inode: int) -> Any:
            if inode == self.root:
                raise DamagedBlockError("bad hash")
            return super().entries_with_attributes(inode)

    with quiet(), mounted(library, Broken()) as volume:
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume.list("\\", "*.bin")
        assert volume.content("\\one.bin")


def test_the_directory_above_is_damaged(library: FakeLibrary) -> None:
    """``..`` needs its attributes."""
    tree = SmallTree()
    with quiet(), mounted(library, tree) as volume, volume.open("\\dir\\sub", nt.LIST) as handle:
        tree.nodes[tree.resolve("dir")].lost = True
        with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
            volume.read_directory(handle)
        tree.nodes[tree.resolve("dir")].lost = False


def test_what_is_found_at_another_place(library: FakeLibrary) -> None:
    """A damaged directory's entry may have the number of what has taken its place: ``lookup`` tells."""

    class Taken(SmallTree):
        def lookup(self, inode: int, name: str) -> int:
            if name in ("one.bin", "sub"):
                raise DamagedBlockError("its record lies elsewhere")
            return super().lookup(inode, name)

    with quiet(), mounted(library, Taken()) as volume:
        for path in ("\\one.bin", "\\dir\\sub", "\\dir\\sub\\leaf.txt"):
            with refused(Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR):
                volume.open(path)


def test_case_does_not_matter_and_stored_names_come_back(library: FakeLibrary) -> None:
    tree = SmallTree()
    file_with(tree, "Größe Straße ÿ.Txt", b"x")
    with mounted(library, tree) as volume:
        for asked, stored in (
            ("\\ONE.BIN", "\\one.bin"),
            ("\\Dir\\SUB\\Leaf.TXT", "\\dir\\sub\\leaf.txt"),
            ("\\gRÖSSE", None),  # ß is no SS
            ("\\GRÖßE STRAßE Ÿ.TXT", "\\Größe Straße ÿ.Txt"),
            ("\\", "\\"),
        ):
            if stored is None:
                with refused(Status.OBJECT_NAME_NOT_FOUND):
                    volume.open(asked)
                continue
            with volume.open(asked) as handle:
                assert handle.name == stored
            if asked != "\\":
                assert volume.find(asked).name == stored.rpartition("\\")[2]


def test_a_name_as_long_as_can_be(library: FakeLibrary) -> None:
    """255 units; and a path above 2048 bytes, whose stored form the driver ignores."""
    tree = SmallTree()
    folder = tree.root
    for _ in range(5):
        folder = tree.directory(folder, "d" * 255)
    tree.file(folder, "leaf.txt", 10)
    with mounted(library, tree) as volume:
        path = ("\\" + "d" * 255) * 5 + "\\leaf.txt"
        assert volume.stat(path).size == 10
        for depth in (1, 3, 4, 5):
            assert volume.stat(("\\" + "d" * 255) * depth).is_directory
        (found,) = volume.list("\\", "d" * 255)
        assert found.name == "d" * 255


def test_a_path_longer_than_the_room_for_its_name(library: FakeLibrary) -> None:
    tree = SmallTree()
    folder = tree.root
    for _ in range(12):
        folder = tree.directory(folder, "d" * 200)
    with mounted(library, tree) as volume:
        assert volume.stat(("\\" + "d" * 200) * 12).is_directory


ODD = {  # a tree's name, and that by which Windows finds it
    'a"b*c:d<e>f?g|h': "a\uf022b\uf02ac\uf03ad\uf03ce\uf03ef\uf03fg\uf07ch",
    "back\\slash": "back\uf05cslash",
    "line\nbreak\x01": "line\uf00abreak\uf001",
    "dot.": "dot\uf02e",
    "space ": "space\uf020",
    "dots...": "dots\uf02e\uf02e\uf02e",
    "\udcff\udc80 not UTF-8": "\uf0ff\uf080 not UTF-8",
    "😀 emoji": "😀 emoji",
    "ordinary.txt": "ordinary.txt",
    "ü" * 127: "ü" * 127,
    "two words": "two words",
    ".hidden": ".hidden",
    "a.b.c": "a.b.c",
}


def test_names_that_windows_has_not(library: FakeLibrary) -> None:
    tree = NamesTree(*ODD)
    with mounted(library, tree) as volume:
        assert {entry.name for entry in volume.list("\\")} == set(ODD.values())
        for number, shown in enumerate(ODD.values()):
            assert volume.content(f"\\{shown}") == f"content of {number}".encode()
            assert volume.find(f"\\{shown}").name == shown


DEVICES = (
    "con",
    "PRN",
    "aux",
    "nul",
    "COM1",
    "com9",
    "LPT1",
    "nul.txt",
    "con.a.b",
    "COM¹",
    "Aux ",
    "nul .txt",
)


def test_names_of_devices(library: FakeLibrary) -> None:
    """Also followed by an extension: "Naming Files, Paths, and Namespaces", Microsoft Learn."""
    plain = ("console", "com", "com10", "xnul", "a.nul", "lpt")
    tree = NamesTree(*DEVICES, *plain)
    with mounted(library, tree) as volume:
        names = {entry.name for entry in volume.list("\\")}
        assert names >= set(plain)
        assert not names & set(DEVICES)
        contents = {volume.content(f"\\{name}") for name in names}
        assert contents == {f"content of {number}".encode() for number in range(len(DEVICES) + len(plain))}


def test_names_that_are_one_to_windows(library: FakeLibrary) -> None:
    names = (
        "Makefile",
        "makefile",
        "MAKEFILE",
        "ß",
        "SS",
        "ss",
        "a:b",
        "a\uf03ab",
        "\u017f",
        "s",
        "\xb5",
        "\u039c",
        "\u03bc",
    )
    tree = NamesTree(*names)
    with mounted(library, tree) as volume:
        shown = [entry.name for entry in volume.list("\\")]
        assert len(shown) == len(names) == len({nt.upper(name) for name in shown})
        contents = {volume.content(f"\\{name}") for name in shown}
        assert contents == {f"content of {number}".encode() for number in range(len(names))}
        for name in shown:
            assert volume.find(f"\\{name}").name == name
        # What is alone keeps its name, though Unicode has an upper case for it.
        assert {"ß", "\u017f", "s", "\xb5"} <= set(shown)


def test_names_longer_than_windows_has(library: FakeLibrary) -> None:
    names = ("x" * 300 + ".txt", "x" * 301 + ".txt", "😀" * 200, "\udcff" * 255, "y" * 255, "Y" * 255)
    tree = NamesTree(*names)
    with mounted(library, tree) as volume:
        shown = [entry.name for entry in volume.list("\\")]
        assert len(shown) == len(names)
        assert all(nt.units(name) <= 255 for name in shown)
        contents = {volume.content(f"\\{name}") for name in shown}
        assert contents == {f"content of {number}".encode() for number in range(len(names))}


def test_every_unit_that_a_name_can_hold(library: FakeLibrary) -> None:
    """Each is listed, opened by its listed name, and read."""
    characters = [chr(number) for number in range(1, 0x10000) if chr(number) != "/"]
    names = [
        f"{number} " + "".join(characters[number : number + 100]) for number in range(0, len(characters), 100)
    ]
    tree = NamesTree(*names)
    with mounted(library, tree) as volume:
        shown = volume.list("\\")
        assert len(shown) == len(names)
        contents = {volume.content(f"\\{entry.name}") for entry in shown}
        assert contents == {f"content of {number}".encode() for number in range(len(names))}


def test_how_a_file_is_opened(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        volume.open("\\dir\\sub\\leaf.txt").close()
        assert volume.calls == ["GetSecurityByName", "Open", "Close"]


def test_directories_on_the_way_where_they_are_checked(library: FakeLibrary) -> None:
    """For callers without SeChangeNotifyPrivilege."""
    who = caller("S-1-5-32-544", traverses=False)
    with mounted(library, SmallTree()) as volume:
        volume.open("\\dir\\sub\\leaf.txt", who=who).close()
        assert volume.calls.count("GetSecurityByName") == 4


def test_names_that_are_not_there_cost_nothing(library: FakeLibrary) -> None:
    tree = CountingTree()
    with mounted(library, tree) as volume:
        volume.stat("\\one.bin")
        tree.asked.clear()
        for name in ("desktop.ini", "Thumbs.db", "folder.jpg", "AutoRun.inf"):
            with refused(Status.OBJECT_NAME_NOT_FOUND):
                volume.open(f"\\{name}")
            with refused(Status.NO_SUCH_FILE):
                volume.find(f"\\{name}")
        assert not [asked for asked in tree.asked if asked[0] == "entries"]


def test_a_name_is_found_without_a_listing(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        volume.find("\\many\\file 00077")
        assert "ReadDirectory" not in volume.calls


def test_what_is_open_holds_no_reader(library: FakeLibrary) -> None:
    """Windows keeps files open for as long as its cache likes."""
    tree = SmallTree()
    with mounted(library, tree) as volume:
        handles = [volume.open(f"\\many\\file {number:05}") for number in range(1, 1000)]
        assert not tree.opened
        for handle in handles:
            volume.read(handle, 0, 1)
        assert len(tree.opened) <= 64
        assert volume.read(handles[0], 0, 1) == tree.bytes_of("many/file 00001")[:1]
        for handle in handles:
            handle.close()
        assert not tree.opened


def test_two_handles_of_one_file(library: FakeLibrary) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        first, second = volume.open("\\big.bin"), volume.open("\\BIG.bin")
        volume.read(first, 0, 10)
        first.close()
        assert volume.read(second, MIB, 100) == tree.bytes_of("big.bin")[MIB : MIB + 100]
        second.close()
        assert not tree.opened


def test_files_are_opened_by_many_at_once(library: FakeLibrary) -> None:
    tree = SmallTree()
    wrong: list[object] = []
    with mounted(library, tree) as volume:

        def work(seed: int) -> None:
            try:
                for number in range(seed, 600, 7):
                    path = f"\\MANY\\FILE {number:05}"
                    assert volume.find(path).name == f"file {number:05}"
                    with volume.open(path) as handle:
                        assert handle.info.size == number
            except (AssertionError, NtError) as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong


def test_a_close_that_fails(library: FakeLibrary) -> None:
    """No context stays behind, and winfspy sees no error."""
    tree = SmallTree()

    class Bad(SmallTree):
        def open(self, inode: int) -> Any:
            handle = super().open(inode)
            close = handle.close

            def fail() -> None:
                close()
                raise OSError(5, "while closing")

            handle.close = fail  # type: ignore[method-assign]
            return handle

    tree = Bad()
    with quiet(), mounted(library, tree) as volume:
        with volume.open("\\one.bin") as handle:
            volume.read(handle, 0, 10)
        assert volume.leaked == 0


def test_rights_that_are_all_that_one_has(library: FakeLibrary) -> None:
    """MAXIMUM_ALLOWED, which Explorer and installers ask for, opens."""
    with mounted(library, SmallTree()) as volume, volume.open("\\one.bin", Access.MAXIMUM_ALLOWED) as handle:
        assert handle.granted == 0x1200A9


def test_attributes_that_change_between_two_questions(library: FakeLibrary) -> None:
    """What a handle says of its file does not fail later: the driver would lose the context."""
    tree = SmallTree()
    with quiet(), mounted(library, tree) as volume, volume.open("\\one.bin") as handle:
        tree.nodes[tree.resolve("one.bin")].lost = True
        assert volume.info(handle).size == 12_345
        tree.nodes[tree.resolve("one.bin")].lost = False
