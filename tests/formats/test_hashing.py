"""Blocks hashed together have the hashes that hashlib gives them one by one."""

import ctypes
import hashlib
import logging
import random
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.content import noise
from fixtures.tools import find_tool
from formats import hashing
from tests.conftest import missing

NATIVE = Path(hashing.__file__).with_name("native")


def expected(blocks: list[hashing.Buffer]) -> list[bytes]:
    return [hashlib.md5(block).digest() for block in blocks]


def test_built() -> None:
    """Where there is a compiler the installation has built it."""
    if hashing._lanes is None:
        missing("md5_lanes was not built: there was no C compiler when the package was installed")


@given(
    lengths=st.lists(st.sampled_from([0, 1, 63, 64, 65, 128, 4096, 65536]), max_size=40),
    alike=st.sampled_from([None, 64, 4096, 65472]),
    seed=st.integers(0, 1 << 32),
)
def test_any_blocks(lengths: list[int], alike: int | None, seed: int) -> None:
    rng = random.Random(seed)
    blocks: list[hashing.Buffer] = []
    for length in lengths:
        data = rng.randbytes(alike or length)
        kind = rng.randrange(3)
        if kind == 0:
            blocks.append(memoryview(bytearray(data)))
        elif kind == 1:
            blocks.append(memoryview(data))  # read-only
        else:
            blocks.append(data)
    assert hashing.md5_of_each(blocks) == expected(blocks)


@pytest.mark.parametrize("count", [*range(20), 31, 32, 33, 47, 48, 64])
def test_each_count(count: int) -> None:
    data = memoryview(bytearray(noise(count, 0, count * 65536)))
    blocks: list[hashing.Buffer] = [data[at * 65536 : (at + 1) * 65536] for at in range(count)]
    assert hashing.md5_of_each(blocks) == expected(blocks)


def test_long_blocks() -> None:
    """The length in bits is more than 32 of them can tell."""
    blocks: list[hashing.Buffer] = [bytes(513 << 20)] * 3
    assert hashing.md5_of_each(blocks) == expected(blocks[:1]) * 3


def test_each_width() -> None:
    """The function itself, for every count, and for lengths of one chunk and of none."""
    if hashing._lanes is None:
        pytest.skip("it is not built")
    for count in range(1, 40):
        for length in (0, 64, 640):
            blocks = [noise(count, length * number, length) for number in range(count)]
            addresses = [hashing._address(block) for block in blocks]
            assert hashing._lanes(addresses, length) == b"".join(expected(list(blocks)))
    with pytest.raises(ValueError, match="65 bytes"):
        hashing._lanes([hashing._address(bytes(65))], 65)


def test_many_threads() -> None:
    blocks: list[hashing.Buffer] = [noise(3, number * 65536, 65536) for number in range(32)]
    wanted = expected(blocks)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if hashing.md5_of_each(blocks) != wanted)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hashing._load(tmp_path / "nothing.so") is None
    monkeypatch.setattr(hashing, "_lanes", None)
    blocks: list[hashing.Buffer] = [noise(1, 0, 65536)] * 20
    assert hashing.md5_of_each(blocks) == expected(blocks)


def test_a_wrong_library_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One step of MD5 done wrong by a compiler is found out when it is loaded."""
    for name in ("md5_lanes.c", "md5_lanes.h"):
        (tmp_path / name).write_text((NATIVE / name).read_text().replace("0xeb86d391", "0xeb86d392"))
    built = tmp_path / "wrong.so"
    source = str(tmp_path / "md5_lanes.c")
    subprocess.run([find_tool("gcc"), "-O2", "-shared", "-fPIC", "-o", str(built), source], check=True)
    assert ctypes.CDLL(str(built)).md5_lanes is not None
    with caplog.at_level(logging.WARNING):
        assert hashing._load(built) is None
    assert "not used" in caplog.text


def test_plain_build_agrees(tmp_path: Path) -> None:
    """What a processor without wide vectors runs is the same source, compiled without them."""
    built = tmp_path / "plain.so"
    text = (NATIVE / "md5_lanes.c").read_text().replace("defined(__x86_64__) && defined(__linux__)", "0")
    (tmp_path / "plain.c").write_text(text)
    (tmp_path / "md5_lanes.h").write_text((NATIVE / "md5_lanes.h").read_text())
    command = [find_tool("gcc"), "-O1", "-Wno-psabi", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(built), str(tmp_path / "plain.c")], check=True)
    assert hashing._load(built) is not None
