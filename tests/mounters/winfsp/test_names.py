"""Names as Windows takes them: "Naming Files, Paths, and Namespaces" (Microsoft Learn), Cygwin's mapping."""

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mounters.winfsp_folding import fold
from mounters.winfsp_names import LONGEST_NAME, unique_names, units, windows_name, with_ending

# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file; the two with "$" are those of "Console
# Handles" (https://learn.microsoft.com/en-us/windows/console/console-handles)
DEVICES = (
    *("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"),
    *(f"COM{digit}" for digit in "123456789\u00b9\u00b2\u00b3"),
    *(f"LPT{digit}" for digit in "123456789\u00b9\u00b2\u00b3"),
)
FORBIDDEN = '<>:"/\\|?*'


def is_taken_by_windows(name: str) -> bool:
    """Tell whether a name is one that Windows' documentation allows."""
    stem = name.partition(".")[0].rstrip(" ").upper()
    return (
        0 < len(name.encode("utf-16-le")) // 2 <= 255
        and not set(name) & {*FORBIDDEN, *map(chr, range(32))}
        and name[-1] not in ". "
        and stem not in DEVICES
    )


@pytest.mark.parametrize(
    "name",
    ["a", "readme.txt", " leading", ".hidden", "..x", "a b", "COM10", "COM", "console", "nula.txt", "x.nul",
     "COM\u2074", "LPT0x", "\u00fcn\u00ef", "\U0001f600", "\x7f", "#%&{}$!'@+`=~", "aux-1", "com1x.txt"],
)  # fmt: skip
def test_names_that_windows_takes_stay(name: str) -> None:
    assert is_taken_by_windows(name)
    assert windows_name(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a:b", "a\uf03ab"),
        ('<>:"\\|?*', "\uf03c\uf03e\uf03a\uf022\uf05c\uf07c\uf03f\uf02a"),
        ("line\nbreak\t\x01\x1f\0", "line\uf00abreak\uf009\uf001\uf01f\uf000"),
        ("dot.", "dot\uf02e"),
        ("space ", "space\uf020"),
        ("x. .", "x\uf02e\uf020\uf02e"),
        ("...", "\uf02e\uf02e\uf02e"),
        ("caf\udce9", "caf\uf0e9"),  # Latin-1
        ("\udc80\udcff", "\uf080\uf0ff"),
        ("half \ud83d", "half \ufffd"),
        ("half \ude00", "half \ufffd"),
    ],
)
def test_what_windows_keeps_for_itself(name: str, shown: str) -> None:
    assert windows_name(name) == shown


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device: str) -> None:
    for name in (
        device,
        device.lower(),
        device.capitalize(),
        f"{device}.txt",
        f"{device}.tar.gz",
        f"{device} .x",
    ):
        shown = windows_name(name)
        assert is_taken_by_windows(shown), name
        assert [ord(new) & 0xFF for new in shown] == [ord(old) & 0xFF for old in name]
    for name in (f"{device}x", f"x{device}", f"x.{device}", f"{device}-1.txt"):
        assert windows_name(name) == name


def test_long_names_are_cut_where_a_character_ends() -> None:
    assert windows_name("n" * 255) == "n" * 255
    assert windows_name("\U0001f600" * 127) == "\U0001f600" * 127
    for name in ("n" * 256 + ".txt", "\U0001f600" * 128, "a" + "\U0001f600" * 200 + ".jpg", "x." + "y" * 300):
        shown = windows_name(name)
        assert is_taken_by_windows(shown)
        assert units(shown) >= 254
        assert shown[:50] == name[:50]
    assert windows_name("n" * 256 + ".txt").endswith(".txt")
    assert windows_name("n" * 256 + "a") != windows_name("n" * 256 + "b")


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), min_size=1))
def test_every_name_becomes_one_that_windows_takes(name: str) -> None:
    shown = windows_name(name)
    assert is_taken_by_windows(shown)
    assert windows_name(shown) == shown


def test_names_that_differ_in_case_alone() -> None:
    assert unique_names(["Makefile", "makefile", "MAKEFILE", "other"]) == [
        "Makefile~2", "makefile~3", "MAKEFILE", "other",
    ]  # fmt: skip
    assert unique_names(["Read.txt", "read.txt"]) == ["Read.txt", "read~2.txt"]
    assert unique_names(["STRASSE", "stra\u00dfe"]) == ["STRASSE", "stra\u00dfe"]  # two names to Windows


def test_a_name_that_stays_goes_before_one_that_is_mapped() -> None:
    assert unique_names(["a:", "a\uf03a"]) == ["a\uf03a~2", "a\uf03a"]
    assert unique_names(["x~2", "X", "x"]) == ["x~2", "X", "x~3"]


def test_long_names_made_unique_stay_short_enough() -> None:
    shown = unique_names(["n" * 255, "N" * 255, "n" * 251 + ".txt", "N" * 251 + ".txt"])
    assert sorted(map(units, shown)) == [255] * 4
    assert len({fold(name) for name in shown}) == 4
    assert with_ending("\U0001f600" * 127 + "a", "~2") == "\U0001f600" * 126 + "~2"


@given(
    st.lists(
        st.text(st.sampled_from("aAbB:.~2\uf03a \udcff"), min_size=1, max_size=4), unique=True, max_size=40
    )
)
def test_uniqueness_does_not_depend_on_the_order(names: list[str]) -> None:
    shown = dict(zip(names, unique_names(names), strict=True))
    assert len({fold(name) for name in shown.values()}) == len(names)
    assert all(map(is_taken_by_windows, shown.values()))
    backwards = names[::-1]
    assert dict(zip(backwards, unique_names(backwards), strict=True)) == shown


def test_very_many_names_alike() -> None:
    names = [
        "".join(choice)
        for choice in itertools.product(*((c, c.upper()) for c in string.ascii_lowercase[:12]))
    ]
    shown = unique_names(names)
    assert len({fold(name) for name in shown}) == len(names) == 4096
    assert all(units(name) <= LONGEST_NAME for name in shown)
