"""Reading devices of Windows: every range, whole sectors only, and the exact unit that fails."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB
from imagefs.errors import SourceReadError
from imagefs.machine.windows.reader import DeviceReader, open_volume
from tests.imagefs.machine.windows.model import Disk, Volume, Windows

SIZE = 9 * MIB + 512  # no whole number of physical sectors of 4096 bytes
NAME = "\\\\?\\Volume{4c1b02c1-d990-11dc-99ae-806e6f6e6963}"
DRIVE = "\\\\.\\PhysicalDrive0"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "disk"
    path.write_bytes(noise(8, 0, SIZE))
    return path


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("unit", [512, 4096])
def test_every_range(file: Path, direct: bool, unit: int) -> None:
    data = file.read_bytes()
    windows = Windows({0: Disk(file)})
    with DeviceReader(windows, DRIVE, unit=unit, direct=direct) as reader:
        assert reader.size == SIZE
        assert reader.read_at(0, SIZE) == data  # more than one buffer
        chance = random.Random(3)
        edges = [0, 1, 511, 512, 4095, 4096, 4 * MIB - 1, 4 * MIB, 8 * MIB + 1, SIZE - 513, SIZE - 1]
        for number in range(80):
            offset = chance.choice(edges) if number % 2 else chance.randrange(SIZE)
            length = chance.choice((1, 512, 4097, chance.randrange(SIZE))) % (SIZE - offset) + 1
            assert reader.read_at(offset, length) == data[offset : offset + length]
            buffer = memoryview(bytearray(length))
            reader.read_into(offset, buffer)
            assert buffer == data[offset : offset + length]
    assert bool(windows.opened[0].flags & 0x20000000) == direct
    windows.assert_untouched()


def test_whole_physical_sectors_are_read_but_at_the_end(file: Path) -> None:
    windows = Windows({0: Disk(file)})
    with DeviceReader(windows, DRIVE, unit=4096) as reader:
        reader.read_at(5000, 1)
        reader.read_at(SIZE - 1, 1)
    assert [read[1:] for read in windows.reads] == [(4096, 4096), (9 * MIB, 512)]


def test_many_threads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file.read_bytes()
    windows = Windows({0: Disk(file)})
    at_once = windows.read_file

    def slowly(handle: int, offset: int, buffer: memoryview) -> int:
        got = at_once(handle, offset, buffer)
        time.sleep(0.002)  # what is read lies there while others read
        return got

    monkeypatch.setattr(windows, "read_file", slowly)

    def read(seed: int) -> bool:
        chance = random.Random(seed)
        offset = chance.randrange(SIZE - 100_000)
        return reader.read_at(offset, 100_000) == data[offset : offset + 100_000]

    with DeviceReader(windows, DRIVE) as reader, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(200)))
    windows.assert_untouched()


@pytest.mark.parametrize(
    ("unit", "bad", "place", "lost"),
    [(512, 3000, 3000 * 512, 512), (4096, 3000, 3000 * 512, 4096), (4096, 3003, 3000 * 512, 4096)],
)
def test_the_unit_that_fails_is_named(file: Path, unit: int, bad: int, place: int, lost: int) -> None:
    windows = Windows({0: Disk(file, bad={bad, bad + 800})})
    with DeviceReader(windows, DRIVE, unit=unit) as reader:
        with pytest.raises(SourceReadError, match=f"error 23.* at {place}\\+{lost}") as caught:
            reader.read_at(0, SIZE)
        assert (caught.value.offset, caught.value.length) == (place, lost)
        assert reader.read_at(0, place) == file.read_bytes()[:place]
        with pytest.raises(SourceReadError) as caught:
            reader.read_into(place + 100, memoryview(bytearray(10)))
        assert (caught.value.offset, caught.value.length) == (place + 100, 10)
    windows.assert_untouched()


def test_a_disk_that_is_gone_fails_as_a_whole(file: Path) -> None:
    windows = Windows({0: Disk(file, gone_after=1)})
    with DeviceReader(windows, DRIVE) as reader:
        assert len(reader.read_at(0, MIB)) == MIB
        with pytest.raises(SourceReadError, match="error 1167") as caught:
            reader.read_at(MIB, MIB)
        assert (caught.value.offset, caught.value.length) == (MIB, MIB)
    assert len(windows.reads) == 2  # it is not looked for where it fails
    windows.assert_untouched()


def test_access_denied_tells_what_helps(file: Path) -> None:
    windows = Windows({0: Disk(file)})
    windows.is_admin = False
    with pytest.raises(SourceReadError, match="error 5") as caught:
        DeviceReader(windows, DRIVE)
    assert caught.value.hint == "run it as administrator"
    assert caught.value.exit_code == 7
    windows.assert_untouched()


def test_nothing_stays_open_where_the_length_is_not_told(file: Path) -> None:
    windows = Windows({0: Disk(file, problems={"IOCTL_DISK_GET_LENGTH_INFO": 21})})
    with pytest.raises(SourceReadError, match="error 21"):
        DeviceReader(windows, DRIVE)
    windows.assert_untouched()


def test_a_closed_reader_reads_nothing(file: Path) -> None:
    windows = Windows({0: Disk(file)})
    reader = DeviceReader(windows, DRIVE)
    reader.close()
    reader.close()
    with pytest.raises(SourceReadError, match="closed"):
        reader.read_at(0, 1)


def of_volume(file: Path) -> Windows:
    end = 3 * MIB - 512  # NTFS leaves the last sector to its second boot sector
    volume = Volume(NAME + "\\", ("C:\\",), ((0, MIB, 3 * MIB),), "NTFS", file_system_end=end)
    return Windows({0: Disk(file)}, [volume])


def test_a_volume_is_read_behind_its_file_system(file: Path) -> None:
    windows = of_volume(file)
    with open_volume(windows, NAME, unit=512) as reader:
        assert reader.read_at(0, reader.size) == file.read_bytes()[MIB : 4 * MIB]
    windows.assert_untouched()


def test_bytes_that_can_not_be_had_are_an_error(file: Path) -> None:
    windows = of_volume(file)
    with DeviceReader(windows, NAME) as reader:
        assert len(reader.read_at(0, 3 * MIB - 512)) == 3 * MIB - 512
        with pytest.raises(SourceReadError, match="ends at 3145216") as caught:
            reader.read_at(3 * MIB - 1000, 1000)
        assert (caught.value.offset, caught.value.length) == (3 * MIB - 512, 512)


@pytest.mark.parametrize("code", [1, 50, 87, 1005])
def test_a_volume_without_file_system_has_no_limit(file: Path, code: int) -> None:
    windows = of_volume(file)
    (volume,) = windows.all_volumes
    volume.file_system = ""
    volume.problems["FSCTL_ALLOW_EXTENDED_DASD_IO"] = code
    with open_volume(windows, NAME, unit=512) as reader:
        assert reader.read_at(3 * MIB - 512, 512) == file.read_bytes()[4 * MIB - 512 : 4 * MIB]


def test_a_volume_that_refuses_is_closed(file: Path) -> None:
    windows = of_volume(file)
    windows.all_volumes[0].problems["FSCTL_ALLOW_EXTENDED_DASD_IO"] = 1167
    with pytest.raises(SourceReadError, match="error 1167"):
        open_volume(windows, NAME, unit=512)
    windows.assert_untouched()
