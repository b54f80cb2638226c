"""What wimlib and ntfs-3g compressed, and chunks put together by hand; in C and in Python alike."""

import ctypes
import logging
import random
import struct
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.content import noise, text
from fixtures.ntfs_wof import ALGORITHMS, compressed, wof_contents
from fixtures.tools import MissingToolError, find_tool
from formats import unpacking
from formats.unpacking import Chunks, Lznt1, Method, unpack_chunks, unpack_lznt1
from tests.conftest import missing

NATIVE = Path(unpacking.__file__).with_name("native")
BOTH = pytest.mark.parametrize("chunks", [unpacking._chunks, unpacking._slow_chunks], ids=["native", "slow"])
METHODS = {
    name: Method.LZX if method == "lzx" else Method.XPRESS_HUFFMAN
    for name, (_, method, _) in ALGORITHMS.items()
}


@cache
def sample(algorithm: str) -> tuple[bytes, bytes]:
    """Return a chunk, text and machine code, compressed and plain."""
    chunk = ALGORITHMS[algorithm][2]
    plain = (text(3, 0, 1000) + wof_contents(chunk)["code"][: chunk // 2] + noise(1, 0, 100)).ljust(
        chunk, b"x"
    )
    try:
        (packed,) = compressed([plain[:chunk]], algorithm)
    except MissingToolError as error:
        missing(str(error))
    return packed, plain[:chunk]


def unpack(chunks: Chunks, algorithm: str, packed: bytes, size: int) -> bytes | None:
    out = bytearray(size)
    edges = np.array([0, len(packed)], np.uint64)
    good = chunks(METHODS[algorithm], packed, edges, memoryview(out), ALGORITHMS[algorithm][2])
    return bytes(out) if good else None


def test_built() -> None:
    """Where there is a compiler the installation has built it."""
    if unpacking._chunks is unpacking._slow_chunks:
        missing("unpack was not built: there was no C compiler when the package was installed")


@BOTH
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_follows_a_chunk_is_not_looked_at(chunks: Chunks, algorithm: str) -> None:
    packed, plain = sample(algorithm)
    for more in (b"", b"\0", b"\xff" * 7, bytes(100)):
        assert unpack(chunks, algorithm, packed + more, len(plain)) == plain


@BOTH
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_cut_off_is_noticed(chunks: Chunks, algorithm: str) -> None:
    packed, plain = sample(algorithm)
    for length in (0, 1, 7, 255, 256, 260, len(packed) // 2, len(packed) - 40, len(packed) - 8):
        assert unpack(chunks, algorithm, packed[:length], len(plain)) is None
    for length in range(len(packed) - 8, len(packed)):  # the last bytes need not hold anything
        assert unpack(chunks, algorithm, packed[:length], len(plain)) in (None, plain)


@BOTH
def test_the_first_wrong_chunk_is_told(chunks: Chunks) -> None:
    packed, plain = sample("xpress4k")
    good = np.array([0, len(packed), 2 * len(packed), 3 * len(packed)], np.uint64)
    out = bytearray(3 * len(plain))
    assert chunks(Method.XPRESS_HUFFMAN, packed * 3, good, memoryview(out), 4096) == 3
    assert out == plain * 3
    assert chunks(Method.XPRESS_HUFFMAN, packed * 2 + bytes(len(packed)), good, memoryview(out), 4096) == 2
    for wrong in (
        [0, 9, 5, 90],
        [0, len(packed), 1 << 40, 1 << 41],
        [0, len(packed), 1 << 63, (1 << 64) - 1],
    ):
        edges = np.array(wrong, np.uint64)
        assert chunks(Method.XPRESS_HUFFMAN, packed * 3, edges, memoryview(out), 4096) < 2
    short = np.array([0, len(packed), len(packed) + 4], np.uint64)
    assert chunks(Method.XPRESS_HUFFMAN, packed + b"last", short, memoryview(out)[:4100], 4096) == 2
    assert out[:4100] == plain + b"last"


def test_output_of_another_length_is_refused() -> None:
    for size in (0, 4096, 8193):
        with pytest.raises(ValueError, match="2 chunks of 4096 bytes"):
            unpack_chunks(Method.LZX, b"", np.zeros(3, np.uint64), memoryview(bytearray(size)), 4096)


@BOTH
@pytest.mark.parametrize("length", [1, 100, 101])
def test_lzx_blocks_that_are_not_compressed(chunks: Chunks, length: int) -> None:
    """One, put together by hand, and then what wimlib compressed, which copies only from its own bytes."""
    plain, rest = noise(9, 0, length), text(8, 0, 5000)
    bits = f"0110{length:016b}".ljust(32, "0")
    header = b"".join(int(bits[at : at + 16], 2).to_bytes(2, "little") for at in (0, 16))
    block = header + struct.pack("<3I", 1, 1, 1) + plain + bytes(length % 2)
    packed = block + compressed([rest], "lzx")[0]
    assert unpack(chunks, "lzx", packed, length + 5000) == plain + rest
    for wrong in (packed[: len(block) - 2], block[:10]):
        assert unpack(chunks, "lzx", wrong, length + 5000) is None


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)


@given(
    algorithm=st.sampled_from(list(ALGORITHMS)),
    changes=CHANGES,
    cut=st.integers(0, 1 << 16) | st.none(),
    size=st.integers(1, 4096) | st.none(),
)
def test_both_agree_on_anything(
    algorithm: str, changes: list[tuple[int, int]], cut: int | None, size: int | None
) -> None:
    packed, plain = sample(algorithm)
    wrong = bytearray(packed)
    for at, value in changes:
        wrong[at % len(wrong)] = value
    if cut is not None:
        del wrong[cut % len(wrong) :]
    wanted = size or len(plain)
    found = unpack(unpacking._chunks, algorithm, bytes(wrong), wanted)
    assert found == unpack(unpacking._slow_chunks, algorithm, bytes(wrong), wanted)


@given(data=st.binary(max_size=600), head=st.binary(max_size=40), algorithm=st.sampled_from(list(ALGORITHMS)))
def test_both_agree_on_noise(data: bytes, head: bytes, algorithm: str) -> None:
    code = b"\x99" * 256 if algorithm.startswith("xpress") else b""
    for packed in (data, code + head, head + data):
        for size in (1, 5000 % ALGORITHMS[algorithm][2], ALGORITHMS[algorithm][2]):
            found = unpack(unpacking._chunks, algorithm, packed, size)
            assert found == unpack(unpacking._slow_chunks, algorithm, packed, size)


def lznt1_chunk(rng: random.Random) -> bytes:
    """Return a chunk of random literals and matches, most of them possible."""
    body = b""
    made = 0
    while made < 4096 and rng.random() < 0.97:
        flags, group = 0, b""
        for bit in range(8):
            if made > 3 and rng.random() < 0.5:
                flags |= 1 << bit
                split = 12 - max(0, (made - 1).bit_length() - 4)
                distance, length = rng.randrange(made + 1), rng.randrange(min(1 << split, 40))
                group += struct.pack("<H", (distance << split | length) & 0xFFFF)
                made += length + 3
            else:
                group += rng.randbytes(1)
                made += 1
        body += bytes([flags]) + group
    body = body or b"\0A"
    return struct.pack("<H", 0xB000 | len(body[:4096]) - 1) + body[:4096]


@given(seed=st.integers(0, 1 << 32), changes=CHANGES, size=st.integers(0, 20_000))
def test_both_agree_on_lznt1(seed: int, changes: list[tuple[int, int]], size: int) -> None:
    rng = random.Random(seed)
    packed = bytearray(b"".join(lznt1_chunk(rng) for _ in range(rng.randrange(5))))
    for at, value in changes:
        if packed:
            packed[at % len(packed)] = value
    found = unpack_lznt1(bytes(packed), size)
    assert found == unpacking._slow_lznt1(bytes(packed), size)
    assert found is None or len(found) <= size


def load(path: Path) -> tuple[Chunks, Lznt1]:
    return unpacking._load(path)


SLOW = (unpacking._slow_chunks, unpacking._slow_lznt1)


def test_a_library_that_is_not_there_or_none(tmp_path: Path) -> None:
    assert load(tmp_path / "none.so") == SLOW
    (tmp_path / "text.so").write_text("no library")
    assert load(tmp_path / "text.so") == SLOW


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("length += 3;", "length += 4;"),
        ("length += 2;", "length += 1;"),
        ("+ 1, length = (token", "+ 2, length = (token"),
        ("target - place :", "target + place :"),
    ],
)
def test_a_library_that_decodes_wrong_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, right: str, wrong: str
) -> None:
    source = (NATIVE / "unpack.c").read_text()
    assert right in source
    (tmp_path / "wrong.c").write_text(source.replace(right, wrong))
    library = tmp_path / "wrong.so"
    subprocess.run([find_tool("gcc"), "-shared", "-fPIC", "-o", library, tmp_path / "wrong.c"], check=True)
    assert ctypes.CDLL(str(library)).unpack_chunks
    with caplog.at_level(logging.WARNING):
        assert load(library) == SLOW
    assert "decodes samples wrong" in caplog.text


def test_the_stand_in_is_right() -> None:
    assert unpacking._is_right(*SLOW)
