"""Descriptors, read by another parser; what is marked as wine's was made or rendered by its advapi32."""

from types import SimpleNamespace

import pytest

from mounters import winfsp_security
from mounters.winfsp_security import (
    descriptor_for,
    for_reading,
    is_usable,
    own_descriptor,
    sid_bytes,
)
from tests.mounters.winfsp.descriptors import caller, check_access, parse
from tests.mounters.winfsp.nt import Access, NtError

USER = "S-1-5-21-397955417-626881126-188441444-3101"
# By wine's ConvertStringSecurityDescriptorToSecurityDescriptorW of the texts
# O:SYG:SYD:PAI(A;;FA;;;BA)(A;OICIIO;GA;;;SY)(D;;0x2;;;WD)(A;;0x1301bf;;;AU)(A;ID;GRGX;;;BU)
MIXED_BYTES = bytes.fromhex(
    "010004941400000020000000000000002c000000010100000000000512000000010100000000000512000000020074000500"
    "000000001800ff011f0001020000000000052000000020020000000b14000000001001010000000000051200000001001400"
    "0200000001010000000000010000000000001400bf01130001010000000000050b00000000101800000000a0010200000000"
    "00052000000021020000"
)
NOBODY_BYTES = bytes.fromhex(  # "O:SYG:BAD:", an empty list
    "0100048014000000200000000000000030000000010100000000000512000000010200000000000520000000200200000200"
    "080000000000"
)
AUDITED_BYTES = bytes.fromhex(  # "O:…-1001G:…-513D:AI(A;OICI;FA;;;…-1001)S:(AU;SA;FA;;;WD)"
    "010014841400000030000000780000004c000000010500000000000515000000010000000200000003000000e90300000105"
    "000000000005150000000100000002000000030000000102000002002c000100000000032400ff011f000105000000000005"
    "15000000010000000200000003000000e903000002001c000100000002401400ff011f00010100000000000100000000"
)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(winfsp_security, "calls", lambda: SimpleNamespace(user=lambda: USER))
    return USER


def test_the_mounting_user_alone(user: str) -> None:
    descriptor = own_descriptor(allow_other=False)
    assert parse(descriptor).text() == (
        f"O:BAG:BAD:P(A;;0x1200a9;;;SY)(A;;0x1200a9;;;BA)(A;;0x1200a9;;;{user})(A;;0x1200a9;;;OW)"
    )
    assert is_usable(descriptor)
    everything = parse(descriptor)
    assert check_access(everything, caller(USER), Access.MAXIMUM_ALLOWED) == 0x1200A9
    with pytest.raises(NtError):
        check_access(everything, caller("S-1-5-21-1-2-3-1002"), Access.READ_DATA)


def test_everyone(user: str) -> None:
    descriptor = own_descriptor(allow_other=True)
    assert parse(descriptor).text() == "O:BAG:BAD:P(A;;0x1200a9;;;WD)(A;;0x1200a9;;;OW)"
    assert check_access(parse(descriptor), caller("S-1-5-32-544"), Access.MAXIMUM_ALLOWED) == 0x1200A9


def test_a_service_that_mounts_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winfsp_security, "calls", lambda: SimpleNamespace(user=lambda: "S-1-5-18"))
    assert parse(own_descriptor(allow_other=False)).text() == (
        "O:BAG:BAD:P(A;;0x1200a9;;;SY)(A;;0x1200a9;;;BA)(A;;0x1200a9;;;OW)"
    )


@pytest.mark.parametrize("right", [0x2, 0x4, 0x10, 0x40, 0x100, 0x10000, 0x40000, 0x80000])
def test_nobody_may_change_anything(user: str, right: int) -> None:
    for descriptor in (own_descriptor(allow_other=False), own_descriptor(allow_other=True)):
        for who in (USER, "S-1-5-18", "S-1-5-32-544"):
            with pytest.raises(NtError):
                check_access(parse(descriptor), caller(who), right)


def test_sids() -> None:
    # [MS-DTYP] 2.4.2.2; the bytes are those of BUILTIN\Administrators on every system
    assert sid_bytes("S-1-5-32-544") == bytes.fromhex("01020000000000052000000020020000")
    for text in ("S-2-5-18", "X-1-5-18", "S-1-5", "S-1-5-" + "-".join("1" * 16), "S-1-5-4294967296"):
        with pytest.raises((ValueError, OverflowError)):
            sid_bytes(text)


def test_rights_to_change_are_taken_out() -> None:
    assert is_usable(MIXED_BYTES)
    shown = parse(for_reading(MIXED_BYTES))
    # as wine's ConvertSecurityDescriptorToStringSecurityDescriptorW says: O:SYG:SYD:PAI(A;;0x1200a9;;;BA)
    # (A;OICIIO;0x1200a9;;;SY)(D;;DC;;;WD)(A;;0x1200a9;;;AU)(A;ID;0x1200a9;;;BU)
    assert shown.text() == (
        "O:SYG:SYD:P(A;;0x1200a9;;;BA)(A;0xb;0x1200a9;;;SY)(D;;0x2;;;WD)"
        "(A;;0x1200a9;;;S-1-5-11)(A;0x10;0x1200a9;;;BU)"
    )
    assert shown.control == 0x9404  # protected and inherited, as it was
    assert check_access(shown, caller("S-1-5-32-544"), Access.MAXIMUM_ALLOWED) == 0x1200A9


def test_who_had_no_rights_gets_none() -> None:
    assert is_usable(NOBODY_BYTES)
    nobody = parse(for_reading(NOBODY_BYTES))
    assert nobody.text() == "O:SYG:BAD:"
    with pytest.raises(NtError):
        check_access(nobody, caller(USER), Access.READ_DATA)


def test_audit_lists_are_left_out_of_the_check() -> None:
    assert is_usable(AUDITED_BYTES)
    shown = parse(for_reading(AUDITED_BYTES))
    assert shown.text() == "O:S-1-5-21-1-2-3-1001G:S-1-5-21-1-2-3-513D:(A;0x3;0x1200a9;;;S-1-5-21-1-2-3-1001)"
    assert not shown.control & 0x10


@pytest.mark.parametrize("control", [0x8000, 0x8004])
def test_without_a_list_everyone_may_read(control: int) -> None:
    bare = bytearray(NOBODY_BYTES)
    bare[2:4] = control.to_bytes(2, "little")
    bare[16:20] = bytes(4)
    assert is_usable(bytes(bare))
    shown = parse(for_reading(bytes(bare)))
    assert shown.dacl is not None
    assert check_access(shown, caller(USER), Access.MAXIMUM_ALLOWED) == 0x1200A9


def test_what_is_malformed_is_not_used() -> None:
    for whole in (MIXED_BYTES, NOBODY_BYTES, AUDITED_BYTES, descriptor_for("S-1-1-0")):
        for length in range(len(whole)):
            assert not is_usable(whole[:length])
    for at, value in (
        (0, 2),  # revision
        (3, 0x14),  # not self-relative
        (4, 0),  # no owner
        (4, 0xF0),  # an owner outside
        (8, 4),  # a group inside the head
        (16, 0xF0),  # a list outside
        (21, 16),  # too many parts in a SID
        (20, 2),  # a SID of another revision
        (44, 3),  # a list of another revision
        (46, 0x78),  # a list longer than all
        (48, 6),  # more ACEs than there are
        (54, 0),  # an ACE without a length
        (54, 0x17),  # one of an odd length
        (54, 0xFC),  # one that is longer than its list
        (len(MIXED_BYTES) - 22, 0x1C),  # so with the last one
    ):
        broken = bytearray(MIXED_BYTES)
        broken[at] = value
        assert not is_usable(bytes(broken)), (at, value)


def test_a_sid_that_is_cut_off_is_not_used() -> None:
    system = sid_bytes("S-1-5-18")
    at_end = (20 + len(NOBODY_BYTES[48:])).to_bytes(4, "little")
    head = NOBODY_BYTES[:4] + at_end + at_end + bytes(4) + (20).to_bytes(4, "little")
    whole = head + NOBODY_BYTES[48:] + system
    assert is_usable(whole)
    assert parse(whole).text() == "O:SYG:SYD:"
    assert not any(is_usable(whole[:-cut]) for cut in range(1, len(system)))
