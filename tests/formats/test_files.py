"""Files at positions, as every system has to have them: run on Windows as well, where wine is."""

import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.files import (
    lock_file,
    move_new,
    open_alone,
    open_file,
    open_stream,
    read_at,
    read_into,
    replace_file,
    sync,
    sync_folder,
    system_path,
    truncate,
    write_at,
    write_many,
)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield opened
    os.close(opened)


def write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = write_at(fd, data, offset)
        data, offset = data[done:], offset + done


def test_bytes_are_kept_as_they_are(fd: int) -> None:
    """No byte is the end of a line, or of the file."""
    data = bytes(range(256)) * 300 + b"\r\n\x1a\n\r"
    write_all(fd, data, 7)
    assert read_at(fd, len(data) + 7, 0) == bytes(7) + data
    assert read_at(fd, 5, len(data) + 2) == data[-5:]
    assert read_at(fd, 0, 3) == b""


def test_the_end_of_a_file(fd: int) -> None:
    write_all(fd, b"0123456789", 0)
    assert read_at(fd, 100, 4) == b"456789"
    assert read_at(fd, 100, 10) == read_at(fd, 1, 10_000) == b""
    buffer = bytearray(b"-" * 8)
    assert read_into(fd, memoryview(buffer)[2:], 7) == 3
    assert buffer == b"--789---"
    assert read_into(fd, memoryview(buffer)[:0], 0) == 0


def test_pieces_lie_one_behind_the_other(fd: int) -> None:
    pieces: list[bytes | bytearray | memoryview] = [b"", b"one", memoryview(b"two"), bytearray(b"three"), b""]
    assert write_many(fd, pieces, 1000) == 11
    assert read_at(fd, 20, 995) == bytes(5) + b"onetwothree"


def test_more_pieces_than_a_call_takes(fd: int) -> None:
    """What was written is told, so that the caller can go on."""
    pieces = [bytes([number % 256]) * 3 for number in range(5000)]
    done = write_many(fd, pieces, 0)
    assert 0 < done <= 15_000
    assert read_at(fd, done, 0) == b"".join(pieces)[:done]


def test_read_only_memory_is_written(fd: int) -> None:
    data = memoryview(b"abcdefgh").toreadonly()
    assert write_at(fd, data[2:5], 0) == 3
    assert read_at(fd, 9, 0) == b"cde"


def test_places_beyond_four_gigabytes(fd: int) -> None:
    place = (5 << 32) - 3
    truncate(fd, place + 100)
    write_all(fd, b"across", place)
    assert read_at(fd, 8, place - 1) == b"\0across\0"
    assert os.fstat(fd).st_size == place + 100
    truncate(fd, 10)
    assert read_at(fd, 20, 0) == bytes(10)


def test_a_cut_file_grows_with_zeros(fd: int) -> None:
    write_all(fd, b"x" * 1000, 0)
    truncate(fd, 10)
    truncate(fd, 1000)
    assert read_at(fd, 1000, 0) == b"x" * 10 + bytes(990)
    sync(fd)


def test_threads_have_no_position_in_common(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open_stream(path, "wb") as stream:
        for number in range(256):
            stream.write(bytes([number]) * 4096)
    reading, writing = open_file(path), open_file(path, os.O_RDWR)
    wrong: list[int] = []

    def look(seed: int) -> None:
        chance, buffer = random.Random(seed), bytearray(100)
        for _ in range(300):
            number = chance.randrange(256)
            found = read_at(reading, 100, number * 4096 + 5)
            read_into(writing, memoryview(buffer), number * 4096)
            if found != bytes([number]) * 100 or buffer != found:
                wrong.append(number)
            write_at(writing, bytes([number]) * 10, number * 4096 + 4000)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(reading)
    os.close(writing)
    assert not wrong
    assert path.read_bytes() == b"".join(bytes([number]) * 4096 for number in range(256))


def test_errors_are_those_of_open(tmp_path: Path, fd: int) -> None:
    with pytest.raises(FileExistsError):
        open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    with pytest.raises(FileNotFoundError) as failed:
        open_file(tmp_path / "none")
    assert failed.value.filename == str(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        open_stream(tmp_path)
    reading = open_file(tmp_path / "file")
    with pytest.raises(OSError):
        write_at(reading, b"x", 0)
    os.close(reading)
    with pytest.raises(OSError):
        read_at(reading, 1, 0)


def test_what_is_there_is_emptied_on_request(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.close(open_file(path, os.O_RDWR | os.O_CREAT))
    assert path.read_bytes() == b"before"
    os.close(open_file(path, os.O_RDWR | os.O_TRUNC))
    assert path.read_bytes() == b""
    path.write_bytes(b"before")
    os.close(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    assert path.read_bytes() == b""


def test_children_inherit_nothing(fd: int) -> None:
    assert not os.get_inheritable(fd)


def test_one_descriptor_has_the_lock(tmp_path: Path, fd: int) -> None:
    """Others can read and write the file all the same."""
    lock_file(fd)
    other = open_file(tmp_path / "file", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        lock_file(other)
    write_all(other, b"holder", 0)
    assert read_at(fd, 6, 0) == b"holder"
    third = open_file(tmp_path / "file", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        lock_file(third)
    os.close(third)
    os.close(other)


def test_a_lock_ends_with_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, second = (open_file(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    lock_file(first)
    os.close(first)
    lock_file(second)
    os.close(second)


def test_a_file_is_moved_and_removed_while_it_is_open(tmp_path: Path, fd: int) -> None:
    write_all(fd, b"here", 0)
    move_new(tmp_path / "file", tmp_path / "moved")
    assert read_at(fd, 4, 0) == b"here"
    (tmp_path / "moved").unlink()
    assert read_at(fd, 4, 0) == b"here"


def test_a_new_name_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        move_new(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"a", b"b")
    move_new(tmp_path / "a", tmp_path / "c")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b", "c"]


def test_a_file_takes_another_one_s_place(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    replace_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    (tmp_path / "next").write_bytes(b"next")
    replace_file(tmp_path / "next", tmp_path / "none yet")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["none yet", "old"]
    sync_folder(tmp_path)


@pytest.mark.skipif(os.name != "nt", reason="elsewhere nobody can be in the way")
@pytest.mark.parametrize("place", ["new", "old"])
def test_a_program_in_the_way_is_waited_for(tmp_path: Path, place: str) -> None:
    """It has opened the file as most programs do: nobody can rename or delete it meanwhile."""
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    with (tmp_path / place).open("rb") as stream:
        timer = threading.Timer(0.5, stream.close)
        timer.start()
        replace_file(tmp_path / "new", tmp_path / "old")
        timer.join()
    assert (tmp_path / "old").read_bytes() == b"new"
    (tmp_path / "next").write_bytes(b"next")
    with (tmp_path / "old").open("rb") as stream:
        with pytest.raises(PermissionError) as failed:
            replace_file(tmp_path / "next", tmp_path / "old")
        assert failed.value.filename == str(tmp_path / "old")
        assert stream.read() == b"new"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["next", "old"]


if sys.platform == "win32":
    from formats.files_windows import SHARING_VIOLATION, open_unwritten

    def test_nobody_writes_to_what_is_held(tmp_path: Path) -> None:
        """Source: Microsoft, "Creating and Opening Files", its table of what goes together."""
        path = tmp_path / "disk"
        path.write_bytes(b"disk")
        held = open_unwritten(path)
        with pytest.raises(PermissionError) as failed:
            open_file(path, os.O_RDWR)
        assert failed.value.winerror == SHARING_VIOLATION
        assert path.read_bytes() == b"disk"
        os.close(held)
        for first in (open_file, open_alone):
            opened = first(path, os.O_RDWR)
            for again in (open_unwritten, lambda path: open_alone(path, os.O_RDWR)):
                with pytest.raises(PermissionError) as failed:
                    again(path)
                assert failed.value.winerror == SHARING_VIOLATION
            os.close(opened)


def test_long_paths(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 100) / ("m" * 100) / ("o" * 100)
    Path("\\\\?\\" + str(folder) if os.name == "nt" else folder).mkdir(parents=True)
    for number in (1, 2):
        with open_stream(folder / f"file{number}", "wb") as stream:
            stream.write(b"%d" % number)
    move_new(folder / "file1", folder / "file3")
    replace_file(folder / "file2", folder / "file3")
    with open_stream(folder / "file3") as stream:
        assert stream.read() == b"2"
    assert Path(system_path(folder / "file3")).exists()
    Path(system_path(folder / "file3")).unlink()
