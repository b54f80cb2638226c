"""Upper case against the tables of others: wine's l_intl.nls, and the $UpCase that mkntfs writes."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.tools import find_tool, run
from mounters.winfsp_folding import fold
from tests.conftest import missing

UNITS = [code for code in range(0x10000) if not 0xD800 <= code < 0xE000]
NLS = Path("/usr/share/wine/nls/l_intl.nls")


def test_what_windows_does_not_fold() -> None:
    for code in (
        *(0xB5, 0x131, 0x17F, 0x1C5, 0x1C8, 0x1CB, 0x1F2, 0x345, 0x3C2, 0x3D0, 0x3D1, 0x3D5, 0x3D6),
        *(0x3F0, 0x3F1, 0x3F5, *range(0x1C80, 0x1C89), 0x1E9B, 0x1FBE, 0xDF, 0x149, 0x1F0, 0xFB01),
    ):  # fmt: skip
        assert fold(chr(code)) == chr(code)


def test_what_windows_folds_to_one_unit() -> None:
    for start in (0x1F80, 0x1F90, 0x1FA0):
        assert [ord(fold(chr(start + at))) for at in range(8)] == [start + 8 + at for at in range(8)]
    assert [fold(c) for c in "\u1fb3\u1fc3\u1ff3"] == ["\u1fbc", "\u1fcc", "\u1ffc"]


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
    table = struct.unpack(f"<{len(data) // 2}H", data)[2:]
    for code in range(0x10000):
        yield (code + table[table[table[code >> 8] + (code >> 4 & 0xF)] + (code & 0xF)]) & 0xFFFF


def test_wine_has_the_same_table() -> None:
    if not NLS.exists():
        missing(f"{NLS} is not there: install the package libwine")
    table = list(wine_table())
    assert [hex(code) for code in UNITS if ord(fold(chr(code))) != table[code]] == []


def test_what_ntfs_folds_is_folded(tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    run("mkntfs", "-F", "-q", image)
    out = tmp_path / "upcase"
    with out.open("wb") as file:
        subprocess.run([find_tool("ntfscat"), "-i", "10", image], stdout=file, check=True)
    table = struct.unpack("<65536H", out.read_bytes()[:131072])
    folded = [code for code in UNITS if table[code] != code]
    assert len(folded) > 900
    assert [hex(code) for code in folded if ord(fold(chr(code))) != table[code]] == []
