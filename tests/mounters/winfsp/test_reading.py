"""Bytes; several threads at once."""

import errno
import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from mounters.tree import Entry
from tests.mounters.memory_tree import DAMAGE, MIB, MemoryHandle
from tests.mounters.winfsp.adapting import SmallTree, file_with, mounted, quiet
from tests.mounters.winfsp.fake_driver import Handle, Volume, refused
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import NtError, Status

HEALTHY = ("one.bin", "zero.bin", "huge number.bin", "empty", "big.bin", "cached.bin", "setuid.bin")
DAMAGED = (Status.FILE_CORRUPT_ERROR, Status.CRC_ERROR, Status.DATA_ERROR)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do work in several threads of the application, and raise what any of them raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_contents(library: FakeLibrary) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        for name in HEALTHY:
            assert volume.content(f"\\{name}") == tree.bytes_of(name), name


def test_reads_at_random(library: FakeLibrary) -> None:
    tree = SmallTree()
    whole = tree.bytes_of("big.bin")
    dice = random.Random(20240710)
    with mounted(library, tree) as volume, volume.open("\\big.bin") as handle:
        for _ in range(500):
            offset = dice.randrange(len(whole))
            length = dice.choice((1, 511, 4096, 70_000, 2 * MIB))
            if dice.random() < 0.5:
                offset = max(0, offset // 65536 * 65536 - dice.randrange(300))
            assert volume.read(handle, offset, length) == whole[offset : offset + length]


@pytest.mark.parametrize("name", ["one.bin", "empty", "dangling"])
def test_the_end_of_a_file(library: FakeLibrary, name: str) -> None:
    """Fewer bytes at the end, a status behind it, never more than were asked for."""
    tree = SmallTree()
    with mounted(library, tree) as volume, volume.open(f"\\{name}") as handle:
        size = handle.info.size
        for offset in (size, size + 1, size + 65536, 1 << 40, (1 << 63) - 1):
            with refused(Status.END_OF_FILE):
                volume.read(handle, offset, 4096)
        for length in (1, 5, 64, 4096, 1 << 20, 5 << 20):
            if size:
                assert len(volume.read(handle, size - 1, length)) == 1
                assert len(volume.read(handle, 0, length)) == min(size, length)


def test_a_tree_that_gives_another_number_of_bytes(library: FakeLibrary) -> None:
    """Too few are an error, not zeros; too many never reach the driver's buffer."""
    tree = SmallTree()
    for name, more in (("more.bin", 1), ("much more.bin", 100_000)):
        node = file_with(tree, name, b"x" * 1000)
        node.read = lambda offset, length, more=more: b"x" * (length + more)
    with quiet(), mounted(library, tree) as volume:
        for name in ("more.bin", "much more.bin", "short.bin", "mismatched.bin"):
            with volume.open(f"\\{name}") as handle:
                try:
                    data = volume.read(handle, 0, 100)
                except NtError as error:
                    assert error.status in (*DAMAGED, Status.IO_DEVICE_ERROR)
                else:
                    assert name.endswith("more.bin")
                    assert data == b"x" * 100


def test_damage(library: FakeLibrary) -> None:
    """A status for what lies in the damaged block; all else can be read, also through the same handle."""
    tree = SmallTree()
    whole = tree.bytes_of("damaged.bin")
    with quiet(), mounted(library, tree) as volume, volume.open("\\damaged.bin") as handle:
        for _ in range(2):
            with refused(*DAMAGED):
                volume.read(handle, DAMAGE.start + 5, 10)
            with refused(*DAMAGED):
                volume.read(handle, DAMAGE.start - 5, 10)
            assert volume.read(handle, DAMAGE.start - 10, 10) == whole[DAMAGE.start - 10 : DAMAGE.start]
            assert volume.read(handle, DAMAGE.stop, 10) == whole[DAMAGE.stop : DAMAGE.stop + 10]
        assert volume.content("\\one.bin") == tree.bytes_of("one.bin")


def test_faults_of_a_tree(library: FakeLibrary) -> None:
    with quiet(), mounted(library, SmallTree()) as volume:
        for name in ("broken.bin", "strange number.bin"):
            with refused(Status.IO_DEVICE_ERROR, *DAMAGED):
                volume.content(f"\\{name}")


def test_a_file_that_cannot_be_opened_for_reading(library: FakeLibrary) -> None:
    """Its reader is made at the first read; a second try is one."""

    class Once(SmallTree):
        failures = 1

        def open(self, inode: int) -> MemoryHandle:
            if self.failures and inode == 1:
                self.failures -= 1
                raise OSError(errno.EHOSTUNREACH, "No route to host")
            return super().open(inode)

    tree = Once()
    with quiet(), mounted(library, tree) as volume, volume.open("\\one.bin") as handle:
        with refused(Status.HOST_UNREACHABLE):
            volume.read(handle, 0, 10)
        assert volume.read(handle, 0, 10) == tree.bytes_of("one.bin")[:10]


def test_eight_readers(library: FakeLibrary) -> None:
    tree = SmallTree()
    expected = {name: hashlib.sha256(tree.bytes_of(name)).hexdigest() for name in ("big.bin", "cached.bin")}
    with mounted(library, tree) as volume:
        shared = volume.open("\\big.bin")
        whole = tree.bytes_of("big.bin")

        def work(number: int) -> None:
            dice = random.Random(number)
            for name, digest in expected.items():
                assert hashlib.sha256(volume.content(f"\\{name}", 300_007)).hexdigest() == digest
            for _ in range(100):
                offset = dice.randrange(len(whole))
                assert volume.read(shared, offset, 10_000) == whole[offset : offset + 10_000]

        in_threads(8, work)
        shared.close()


def test_callbacks_are_answered_side_by_side(library: FakeLibrary) -> None:
    """Eight slow reads of one file take as long as one: no lock is held while a tree is read."""
    tree = SmallTree()
    together = threading.Barrier(8)
    node = file_with(tree, "slow", b"slow" * 100)
    whole = node.read
    assert whole is not None

    def late(offset: int, length: int) -> bytes:
        together.wait(20)
        return whole(offset, length)

    node.read = late
    with mounted(library, tree) as volume:
        handle = volume.open("\\slow")
        in_threads(8, lambda number: check(volume.read(handle, 4 * number, 4) == b"slow"))
        handle.close()


def check(right: bool) -> None:
    assert right


@pytest.mark.parametrize("what", ["read", "open", "entries"])
def test_what_is_slow_stops_nothing_else(library: FakeLibrary, what: str) -> None:
    began, go = threading.Event(), threading.Event()

    class Slow(SmallTree):
        def open(self, inode: int) -> MemoryHandle:
            if what == "open" and inode == 1:
                began.set()
                go.wait(60)
            return super().open(inode)

        def entries(self, inode: int) -> list[Entry]:
            if what == "entries" and inode == self.nodes[self.root].children["many"]:
                began.set()
                go.wait(60)
            return super().entries(inode)

    tree = Slow()
    node = tree.nodes[1]
    whole = node.read
    assert whole is not None

    def late(offset: int, length: int) -> bytes:
        if what == "read":
            began.set()
            go.wait(60)
        return whole(offset, length)

    node.read = late
    with mounted(library, tree) as volume:

        def wait() -> None:
            if what == "entries":
                volume.list("\\many")
            else:
                volume.content("\\one.bin")

        slow = threading.Thread(target=wait)
        slow.start()
        try:
            assert began.wait(10)
            assert volume.content("\\big.bin") == tree.bytes_of("big.bin")
            assert volume.list("\\dir")
            assert volume.stat("\\one.bin").size == 12_345
            assert volume.find("\\dir\\sub").name == "sub"
            assert slow.is_alive()
        finally:
            go.set()
            slow.join(20)


def test_small_reads_open_a_file_once(library: FakeLibrary) -> None:
    class Counting(SmallTree):
        times = 0

        def open(self, inode: int) -> MemoryHandle:
            self.times += 1
            return super().open(inode)

    tree = Counting()
    with mounted(library, tree) as volume, volume.open("\\one.bin") as handle:
        read_all(volume, handle)
        assert tree.times == 1


def read_all(volume: Volume, handle: Handle) -> None:
    for offset in range(0, 12_000, 512):
        volume.read(handle, offset, 512)
