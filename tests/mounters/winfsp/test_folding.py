"""Upper case against the tables of others: wine's l_intl.nls, and the $UpCase that mkntfs writes."""

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.tools import find_tool, run
from mounters.winfsp_folding import fold, unicode_table

UNITS = [code for code in range(0x10000) if not 0xD800 <= code < 0xE000]
NLS = Path("/usr/share/wine/nls/l_intl.nls")


@pytest.fixture(scope="module")
def table() -> dict[int, int]:
    """Return the upper case of every unit, as it is where no Windows can be asked."""
    known = unicode_table()
    return {code: ord(known.get(code, chr(code))) for code in UNITS}


def test_what_windows_does_not_fold(table: dict[int, int]) -> None:
    for code in (
        *(0xB5, 0x131, 0x17F, 0x1C5, 0x1C8, 0x1CB, 0x1F2, 0x345, 0x3C2, 0x3D0, 0x3D1, 0x3D5, 0x3D6),
        *(0x3F0, 0x3F1, 0x3F5, *range(0x1C80, 0x1C89), 0x1E9B, 0x1FBE, 0xDF, 0x149, 0x1F0, 0xFB01),
    ):  # fmt: skip
        assert table[code] == code


def test_what_windows_folds_to_one_unit(table: dict[int, int]) -> None:
    for start in (0x1F80, 0x1F90, 0x1FA0):
        assert [table[start + at] for at in range(8)] == [start + 8 + at for at in range(8)]
    assert [table[code] for code in (0x1FB3, 0x1FC3, 0x1FF3)] == [0x1FBC, 0x1FCC, 0x1FFC]


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("readme.txt", "README.TXT"),
        ("Stra\u00dfe", "STRA\u00dfE"),
        ("\u00e9\u00ff\u0153", "\u00c9\u0178\u0152"),
        ("\u0444\u0430\u0439\u043b", "\u0424\u0410\u0419\u041b"),
        ("\u03c3\u03c2", "\u03a3\u03c2"),
        ("\U00010428", "\U00010428"),  # Deseret: two units, neither of which is a letter
        ("i\u0131\u0130", "I\u0131\u0130"),
        ("\udcff", "\udcff"),
    ],
)
def test_names(name: str, folded: str) -> None:
    assert fold(name) == folded


def test_it_is_idempotent_and_keeps_lengths() -> None:
    for code in UNITS:
        upper = fold(chr(code))
        assert len(upper) == 1
        assert ord(upper) < 0x10000
        assert fold(upper) == upper


def wine_table() -> Iterator[int]:
    """Yield the upper case of each unit: after a first word, a table of differences with three levels."""
    data = NLS.read_bytes()
    words = struct.unpack(f"<{len(data) // 2}H", data)[2:]
    for code in range(0x10000):
        yield (code + words[words[words[code >> 8] + (code >> 4 & 0xF)] + (code & 0xF)]) & 0xFFFF


@pytest.mark.skipif(not NLS.exists(), reason="wine is not installed")
def test_wine_has_the_same_table(table: dict[int, int]) -> None:
    others = list(wine_table())
    assert [hex(code) for code in UNITS if table[code] != others[code]] == []


@pytest.mark.skipif(sys.platform == "win32", reason="its tools are not for Windows")
def test_what_ntfs_folds_is_folded(table: dict[int, int], tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    run("mkntfs", "-F", "-q", image)
    out = tmp_path / "upcase"
    with out.open("wb") as file:
        subprocess.run([find_tool("ntfscat"), "-i", "10", image], stdout=file, check=True)
    others = struct.unpack("<65536H", out.read_bytes()[:131072])
    folded = [code for code in UNITS if others[code] != code]
    assert len(folded) > 900
    assert [hex(code) for code in folded if table[code] != others[code]] == []


if sys.platform == "win32":
    import ctypes

    def test_windows_is_asked() -> None:
        """By another call than ours: of strings, not of single units."""

        class UnicodeString(ctypes.Structure):
            _fields_ = (("length", ctypes.c_uint16), ("room", ctypes.c_uint16), ("buffer", ctypes.c_void_p))

        upcase = ctypes.WinDLL("ntdll").RtlUpcaseUnicodeString
        for start in range(0, len(UNITS), 16384):
            text = "".join(map(chr, UNITS[start : start + 16384]))
            given = ctypes.create_string_buffer(text.encode("utf-16-le"))
            room = ctypes.create_string_buffer(len(given))
            size = 2 * len(text)
            source = UnicodeString(size, size, ctypes.addressof(given))
            target = UnicodeString(0, size, ctypes.addressof(room))
            assert upcase(ctypes.byref(target), ctypes.byref(source), 0) == 0
            assert fold(text) == room.raw[:size].decode("utf-16-le")
