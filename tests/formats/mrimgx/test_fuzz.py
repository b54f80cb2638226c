"""Whatever an image file says behind right hashes: what comes out is a FormatError, in time and in memory."""

import copy
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from fixtures import damage, disks
from fixtures.mrimgx_blocks import HEADER, Parts
from fixtures.mrimgx_writer import SetWriter, every_block
from formats.errors import FormatError
from tests.formats.mrimgx.test_damage import use_everything

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EXTREMES = (0, 1, -1, 4095, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**400)
SET = Path  # a folder with a full and a delta


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SET, list[Path], list[bytes]]]:
    """Write a full and a delta on it of a small disk; hand out their paths and contents."""
    folder = tmp_path_factory.mktemp("fuzz")
    first = disks.plain_disk(folder, "tiny", sizes=(300_000,))
    second = disks.change_disk(first, folder, "tiny2")
    writer = SetWriter(folder / "set", used=every_block)
    paths = [writer.full([first]).path, writer.incremental([second]).path]
    yield folder / "set", paths, [path.read_bytes() for path in paths]
    shutil.rmtree(folder)


def restored(pair: tuple[SET, list[Path], list[bytes]], which: int) -> tuple[Path, Path]:
    """Write both files anew; return the one to be changed and the other."""
    _, paths, contents = pair
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths[which], paths[1 - which]


def use_set(folder: SET, *paths: Path) -> None:
    for path in paths:
        use_everything(path)
    containers, unreadable = formats.open_folder(folder)
    for container in containers:
        with container:
            container.blocks_to_check()
            try:
                for check in container.checks():
                    check.run()
            except FormatError as error:
                assert "\n" not in str(error)
    assert not [reason for reason in unreadable.values() if "\n" in str(reason)]


@given(
    which=st.integers(0, 1),
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(-40, 70),
)
@settings(FUZZ, max_examples=150)
def test_indexes_of_any_bytes(
    pair: tuple[SET, list[Path], list[bytes]], which: int, edits: list[tuple[int, int]], cut: int
) -> None:
    path, other = restored(pair, which)
    payload = bytearray(Parts.load(path).index(0, 0))
    for at, byte in edits:
        payload[at % len(payload)] = byte
    damage.set_index_payload(path, 0, bytes(payload[:cut]) if cut < 0 else bytes(payload) + bytes(cut % 35))
    use_set(pair[0], path, other)


@given(
    which=st.integers(0, 1),
    field=st.integers(0, 4),
    row=st.integers(0, 4),
    value=st.sampled_from(EXTREMES) | st.integers(),
)
@settings(FUZZ, max_examples=150)
def test_elements_of_any_value(
    pair: tuple[SET, list[Path], list[bytes]], which: int, field: int, row: int, value: int
) -> None:
    """Positions, lengths, file numbers and block numbers, each with the values where things overflow."""
    path, other = restored(pair, which)
    payload = bytearray(Parts.load(path).index(0, 0))
    size = 34 if which else 30
    count = (len(payload) - 8) // size
    at = 8 + row % count * size
    kind, offset = (("<q", 0), ("<16s", 8), ("<I", 24), ("<H", 28), ("<I", 30))[field if which else field % 4]
    bits = struct.calcsize(kind) * 8
    raw: int | bytes = value % (1 << bits)
    if kind == "<16s":
        raw = (value % (1 << bits)).to_bytes(16, "little")
    elif kind == "<q":
        raw = value % (1 << 64) - (1 << 63)
    struct.pack_into(kind, payload, at + offset, raw)
    damage.set_index_payload(path, 0, bytes(payload))
    use_set(pair[0], path, other)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(EXTREMES)
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "none", "aes-256", "gpt", "mbr", "\n", "\ud800", "0" * 16, "f" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def leaves(node: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value that the product may read, containers too."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key not in ("_auxiliary_data", "_descriptor", "_partition_table_entry"):
            yield (*place, key)
            yield from leaves(value, (*place, key))


@given(which=st.integers(0, 1), data=st.data())
@settings(FUZZ, max_examples=400)
def test_documents_of_any_values(pair: tuple[SET, list[Path], list[bytes]], which: int, data: Any) -> None:
    path, other = restored(pair, which)
    parts = Parts.load(path)
    document = copy.deepcopy(parts.document)
    places = sorted(leaves(document), key=str)
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        node: Any = document
        try:
            for key in place[:-1]:
                node = node[key]
            if data.draw(st.booleans()) or not isinstance(node, dict):
                node[place[-1]] = data.draw(JSON)
            else:
                del node[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    try:
        text = json_text(document)
    except ValueError:
        return
    parts.set_json_bytes(text)
    path.write_bytes(parts.packed())
    use_set(pair[0], path, other)


def json_text(document: Any) -> bytes:
    """Spell a document as JSON; halves of surrogate pairs as escapes."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(document).encode()
    finally:
        sys.set_int_max_str_digits(limit)


@given(
    which=st.integers(0, 1),
    block=st.integers(0, 10),
    change=st.sampled_from(["name", "length", "flags", "hash"]),
    value=st.integers(0, 2**64 - 1),
)
@settings(FUZZ, max_examples=200)
def test_metadata_headers_of_any_bytes(
    pair: tuple[SET, list[Path], list[bytes]], which: int, block: int, change: str, value: int
) -> None:
    path, other = restored(pair, which)
    whole = bytearray(path.read_bytes())
    offsets = list(header_offsets(path))
    at = offsets[block % len(offsets)]
    name, length, digest, flags = HEADER.unpack_from(whole, at)
    if change == "name":
        name = value.to_bytes(8, "little") if value % 2 else b"$" + (value >> 8).to_bytes(7, "little")
    elif change == "length":
        length = max(0, length + value % 129 - 64) if value % 2 else value % (1 << 32)
    elif change == "flags":
        flags = value % 256
    else:
        digest = bytes(16)
    HEADER.pack_into(whole, at, name, length, digest, flags)
    path.write_bytes(whole)
    use_set(pair[0], path, other)


def header_offsets(path: Path) -> Iterator[int]:
    """Yield where the header of each metadata block stands, in the lists and in the root list."""
    parts = Parts.load(path)
    at = len(parts.data)
    for blocks in (*parts.lists, parts.root):
        for block in blocks:
            yield at
            at += HEADER.size + len(block.stored)


def test_counts_that_nothing_could_hold(pair: tuple[SET, list[Path], list[bytes]]) -> None:
    """Reserved arrays and lists of blocks as long as their counts can say."""
    path, other = restored(pair, 0)
    index = Parts.load(path).index(0, 0)
    for payload in (
        struct.pack("<I", 2**32 - 1) + index[4:],
        struct.pack("<II", 0, 2**32 - 1) + index[8:],
        struct.pack("<II", 0, 0),
        struct.pack("<I", 1),
        struct.pack("<I", 1000) + bytes(30_000) + index[4:],
    ):
        damage.set_index_payload(path, 0, payload)
        use_set(pair[0], path, other)


def test_lists_that_do_not_end(pair: tuple[SET, list[Path], list[bytes]]) -> None:
    path, other = restored(pair, 0)
    parts = Parts.load(path)
    parts.lists[0] = [replace(parts.lists[0][0], name=b"$CBT", stored=b"")] * 5000 + parts.lists[0]
    path.write_bytes(parts.packed())
    use_set(pair[0], path, other)
