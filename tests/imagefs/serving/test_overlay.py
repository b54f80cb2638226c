"""The overlay against a plain array of bytes, reopened, killed, and in the wrong hands."""

import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.damage import flip_byte, truncate
from formats.blockreader import BlockReader, BytesReader, ConcatReader, ZeroReader
from formats.errors import DamagedError, ReportedError, UnsupportedError
from imagefs.errors import RefusedError, TargetWriteError
from imagefs.serving import overlay as serving_overlay
from imagefs.serving.overlay import Overlay
from imagefs.serving.overlay_layout import BLOCK_SIZE, MAGIC, Owner

KIB = 1024
SIZE = 1024 * KIB + 512  # ends inside a block
HOLE = 300_000, 200_000  # of the base


def base_bytes() -> bytes:
    data = bytearray(noise(5, 0, SIZE))
    data[HOLE[0] : sum(HOLE)] = bytes(HOLE[1])
    return bytes(data)


def base_reader() -> BlockReader:
    data = base_bytes()
    end = sum(HOLE)
    return ConcatReader([BytesReader(data[: HOLE[0]]), ZeroReader(HOLE[1]), BytesReader(data[end:])])


OWNER = Owner("2394E9AA621DDC3A", 3, 1_720_608_136, 4, SIZE)


def opened(path: Path, owner: Owner = OWNER) -> Overlay:
    return Overlay(path, owner, base_reader())


def everything(overlay: Overlay) -> bytes:
    return overlay.read(0, SIZE, base_reader().read_at)


def some_range(rng: random.Random) -> tuple[int, int]:
    """Return an offset and a length; half of them begin or end on a block's edge."""
    offset = rng.randrange(SIZE)
    length = min(SIZE - offset, rng.choice([1, 511, 512, 4096, 5000, 70_000, 300_000]))
    if rng.random() < 0.5:
        offset -= offset % BLOCK_SIZE
    if rng.random() < 0.25:
        length = SIZE - offset
    return offset, length


def change(rng: random.Random, overlay: Overlay, model: bytearray) -> None:
    offset, length = some_range(rng)
    if rng.random() < 0.6:
        data = rng.randbytes(length)
        overlay.write(offset, memoryview(data) if rng.random() < 0.5 else data)
    else:
        data = bytes(length)
        overlay.zero(offset, length, hole=rng.random() < 0.8)
    model[offset : offset + length] = data


def check_runs(overlay: Overlay, model: bytearray, offset: int, length: int) -> None:
    """Check that runs cover the range, neighbours differ and holes are zeros."""
    at, last = offset, None
    for run in overlay.runs(offset, length):
        assert run.length > 0
        assert run.is_data != last
        if not run.is_data:
            assert not any(model[at : at + run.length]), at
        at, last = at + run.length, run.is_data
    assert at == offset + length


@pytest.mark.parametrize("seed", range(8))
def test_as_an_array_of_bytes(tmp_path: Path, seed: int) -> None:
    """Writes, zeros and reads of any alignment, reopened now and then."""
    rng, path, model = random.Random(seed), tmp_path / "overlay", bytearray(base_bytes())
    below = base_reader().read_at
    for _ in range(4):
        with opened(path) as overlay:
            assert everything(overlay) == model
            for _ in range(30):
                change(rng, overlay, model)
                for offset, length in (some_range(rng) for _ in range(5)):
                    assert overlay.read(offset, length, below) == model[offset : offset + length]
                    check_runs(overlay, model, offset, length)
                if rng.random() < 0.2:
                    overlay.flush()
    assert base_reader().read_at(0, SIZE) == base_bytes()


def test_runs(tmp_path: Path) -> None:
    """What was written is data, what was zeroed a hole, all else as in the base."""
    with opened(tmp_path / "overlay") as overlay:
        assert [tuple(run) for run in overlay.runs(0, SIZE)] == [
            (HOLE[0], True), (HOLE[1], False), (SIZE - sum(HOLE), True),
        ]  # fmt: skip
        overlay.zero(0, 64 * KIB, hole=True)
        overlay.write(400 * KIB, b"x")
        overlay.zero(SIZE - 512, 512, hole=True)
        assert [tuple(run) for run in overlay.runs(0, SIZE)] == [
            (64 * KIB, False),
            (HOLE[0] - 64 * KIB, True),
            (400 * KIB - HOLE[0], False),
            (BLOCK_SIZE, True),
            (sum(HOLE) - 400 * KIB - BLOCK_SIZE, False),
            (SIZE - 512 - sum(HOLE), True),
            (512, False),
        ]


def test_takes_no_more_room_than_what_was_written(tmp_path: Path) -> None:
    """Writing takes room, trimming gives it back; zeros that were asked for with their room keep it."""
    path = tmp_path / "overlay"
    with opened(path) as overlay:
        overlay.flush()
        empty = path.stat().st_blocks * 512
        assert empty <= 64 * KIB
        overlay.write(0, noise(1, 0, 512 * KIB))
        overlay.flush()
        assert path.stat().st_blocks * 512 >= 512 * KIB
        overlay.zero(0, 512 * KIB, hole=True)
        overlay.flush()
        assert path.stat().st_blocks * 512 <= empty + 64 * KIB
        overlay.zero(0, 512 * KIB, hole=False)
        overlay.flush()
        assert path.stat().st_blocks * 512 >= 512 * KIB


def test_holes_of_the_image_stay_its_own(tmp_path: Path) -> None:
    """A trim of what the image does not hold leaves the overlay's map as it is."""
    path = tmp_path / "overlay"
    with opened(path) as overlay:
        overlay.zero(HOLE[0] + 8 * KIB, HOLE[1] - 16 * KIB, hole=True)
        overlay.flush()
    assert not any(path.read_bytes()[4096:])


def test_several_writers(tmp_path: Path) -> None:
    """Threads that write to neighbouring parts of the same blocks do not undo each other's work."""
    path, step, count = tmp_path / "overlay", 1000, 1000
    with opened(path) as overlay:

        def write(thread: int) -> None:
            for number in range(thread, count, 4):
                overlay.write(number * step, bytes([number % 251]) * step)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = everything(overlay)
    assert whole[: count * step] == b"".join(bytes([number % 251]) * step for number in range(count))
    assert whole[count * step :] == base_bytes()[count * step :]


WRITER = """
import random, sys
from pathlib import Path
from tests.imagefs.serving.test_overlay import change, opened, base_bytes
rng, model = random.Random(int(sys.argv[2])), bytearray(base_bytes())
overlay = opened(Path(sys.argv[1]))
for number in range(1000):
    for _ in range(3):
        change(rng, overlay, model)
    overlay.flush()
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_killed(tmp_path: Path, seed: int) -> None:
    """What was flushed is there, whenever its writer is killed; of the rest, old or new bytes."""
    path = tmp_path / "overlay"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(seed)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        for _ in range(5 + seed):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        flushed = 5 + seed + len(process.stdout.readlines())
    rng, model = random.Random(seed), bytearray(base_bytes())
    with opened(tmp_path / "model") as twin:
        for _ in range(flushed * 3):
            change(rng, twin, model)
        allowed = [bytes(model)]
        for _ in range(3):
            change(rng, twin, model)
            allowed.append(bytes(model))
    with opened(path) as overlay:
        found = everything(overlay)
    for at in range(0, SIZE, 512):
        assert found[at : at + 512] in {state[at : at + 512] for state in allowed}, at


# --- In the wrong hands ---


@pytest.mark.parametrize(
    "other",
    [
        replace(OWNER, image_id="DD5A77E6B68A6C34"),
        replace(OWNER, file_number=4),
        replace(OWNER, created=OWNER.created + 1),
        replace(OWNER, disk_number=5),
    ],
)
def test_of_another_disk(tmp_path: Path, other: Owner) -> None:
    path = tmp_path / "overlay"
    with opened(path) as overlay:
        overlay.write(5, b"kept")
    before = path.read_bytes()
    with pytest.raises(RefusedError, match=r"belongs to disk4 of set 2394E9AA621DDC3A, file number 3"):
        opened(path, other)
    assert path.read_bytes() == before


def test_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    opened(path).close()
    with pytest.raises(RefusedError, match="belongs to"):
        Overlay(path, replace(OWNER, size=SIZE + 512), ZeroReader(SIZE + 512))


def test_in_use(tmp_path: Path) -> None:
    with opened(tmp_path / "overlay"), pytest.raises(RefusedError, match="in use by another process"):
        opened(tmp_path / "overlay")
    opened(tmp_path / "overlay").close()


def test_what_is_no_overlay_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"a picture" * 1000)
    marked: list[int] = []  # as sparse, which on Windows stays with the file
    monkeypatch.setattr(serving_overlay, "make_sparse", marked.append)
    with pytest.raises(RefusedError, match="is no overlay"):
        opened(path)
    assert not marked
    assert path.read_bytes() == b"a picture" * 1000
    with pytest.raises(TargetWriteError, match="Is a directory"):
        opened(tmp_path)
    with pytest.raises(RefusedError, match="is no regular file"):
        opened(Path("/dev/null"))


def test_an_empty_file_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "overlay"
    path.touch()
    marked: list[int] = []
    monkeypatch.setattr(serving_overlay, "make_sparse", marked.append)
    with opened(path) as overlay:
        assert len(marked) == 1
        assert everything(overlay) == base_bytes()


@pytest.mark.parametrize(
    ("offset", "kind", "says"),
    [(20, DamagedError, "header is damaged"), (len(MAGIC) + 30, DamagedError, "header is damaged"),
     (4096 + 7, DamagedError, "map is damaged"), (0, RefusedError, "is no overlay")],
)  # fmt: skip
def test_damaged(tmp_path: Path, offset: int, kind: type[ReportedError], says: str) -> None:
    path = tmp_path / "overlay"
    with opened(path) as overlay:
        overlay.write(0, noise(1, 0, 64 * KIB))
    flip_byte(path, offset, 0x80)
    with pytest.raises(kind, match=says):
        opened(path)


def test_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    opened(path).close()
    truncate(path)
    with pytest.raises(DamagedError, match="are needed"):
        opened(path)


def test_of_a_later_version(tmp_path: Path) -> None:
    import struct
    import zlib

    path = tmp_path / "overlay"
    opened(path).close()
    header = bytearray(path.read_bytes()[:120])
    struct.pack_into("<I", header, 16, 2)
    with path.open("r+b") as stream:
        stream.write(header + struct.pack("<I", zlib.crc32(header)))
    with pytest.raises(UnsupportedError, match="version 2"):
        opened(path)


def test_a_full_disk(tmp_path: Path) -> None:
    """A write that fails says so; what was there before stays readable."""
    import resource

    path = tmp_path / "overlay"
    with opened(path) as overlay:
        overlay.write(0, b"first")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 100_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                overlay.write(SIZE - 50_000, noise(1, 0, 20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, old)
        assert everything(overlay) == b"first" + base_bytes()[5:]
