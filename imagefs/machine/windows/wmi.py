"""Windows' own account of shadow copies: its management instrumentation (WMI), through pywin32.

Source: Microsoft, "Win32_ShadowCopy class", "Create method of the Win32_ShadowCopy class"
(https://learn.microsoft.com/previous-versions/windows/desktop/vsswmi/), "WMI Error Constants", and vss.h.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

from imagefs.errors import SnapshotError

Result = TypeVar("Result")

_CLASS = "Win32_ShadowCopy"
_DISP_E_EXCEPTION = 0x80020009  # then the exception's own code counts
_NOT_FOUND = 0x80041002  # WBEM_E_NOT_FOUND
_ID = re.compile(r"\{[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}")
_TIME = re.compile(r"(\d{14}\.\d{6})([+-]\d{3})")
_IN_PROGRESS = 9

_EVENTS = "see what VSS and volsnap say in Windows' event log, and that the services VSS and swprv may run"
_ADMINISTRATOR = "start the command line as an administrator"
# What Create returns: what is wrong, and what helps.
_RETURNED = {
    1: ("Windows lets administrators alone make shadow copies", _ADMINISTRATOR),
    2: ("Windows does not take this name of a volume", "name a drive letter"),
    3: ("Windows has no such volume", "imagefs disks shows those that are there"),
    4: (
        "Windows makes no shadow copies of its file system, but of NTFS",
        "image it while nothing writes to it, or as it is with --live",
    ),
    5: ("this Windows makes no persistent shadow copies", "image it as it is with --live"),
    6: (
        "there is too little room for a shadow copy",
        "free some room, or give it more: vssadmin resize shadowstorage /?",
    ),
    7: ("the volume is in use in a way that hinders a shadow copy", "try again when less is done on it"),
    8: (
        "the volume has as many shadow copies as it can have",
        "vssadmin list shadows shows them; remove one that nobody needs",
    ),
    _IN_PROGRESS: (
        "another program makes a shadow copy all the time",
        "wait for the other backup to end, and try again",
    ),
    10: ("the provider of shadow copies refused", _EVENTS),
    11: ("the provider of shadow copies is not registered", "vssadmin list providers shows those that are"),
    12: ("the provider of shadow copies failed", _EVENTS),
    13: ("Windows made no shadow copy, for a reason that it doesn't know", _EVENTS),
}
_DISABLED = (
    "the service of shadow copies is switched off",
    "switch it on: sc config VSS start= demand, and the same for swprv",
)
_NO_VSS = ("Windows' shadow copies (VSS) are not there", "image it as it is with --live")
_NOT_ANSWERING = (
    "Windows' management service does not answer",
    "see that the service winmgmt runs: sc query winmgmt",
)
_WRITERS = ("the programs that were to stand still for a shadow copy did not answer", _EVENTS)
_BUSY = (
    "the volume could not stand still for a shadow copy: it timed out",
    "try again when less is done on it",
)
_FAILED = {
    0x80041002: _NO_VSS,  # WBEM_E_NOT_FOUND, of the class
    0x8004100E: _NO_VSS,  # WBEM_E_INVALID_NAMESPACE
    0x80041010: _NO_VSS,  # WBEM_E_INVALID_CLASS
    0x80041011: _NO_VSS,  # WBEM_E_PROVIDER_NOT_FOUND
    0x80041013: ("Windows can't load what tells of shadow copies", "use the 64-bit Python"),  # … LOAD_FAILURE
    0x80041014: ("Windows can't start what tells of shadow copies", "use the 64-bit Python"),
    0x80070422: _DISABLED,  # ERROR_SERVICE_DISABLED
    0x80070005: _RETURNED[1],  # E_ACCESSDENIED
    0x80041003: _RETURNED[1],  # WBEM_E_ACCESS_DENIED
    0x80041062: _RETURNED[1],  # WBEM_E_PRIVILEGE_NOT_HELD
    0x80043001: _BUSY,  # WBEM_E_TIMED_OUT
    0x800706BA: _NOT_ANSWERING,  # RPC_S_SERVER_UNAVAILABLE
    0x800706BE: _NOT_ANSWERING,  # RPC_S_CALL_FAILED
    0x80080005: _NOT_ANSWERING,  # CO_E_SERVER_EXEC_FAILURE
    0x80042302: _RETURNED[13],  # VSS_E_UNEXPECTED
    0x80042304: _RETURNED[11],  # VSS_E_PROVIDER_NOT_REGISTERED
    0x80042306: _RETURNED[10],  # VSS_E_PROVIDER_VETO
    0x80042308: _RETURNED[3],  # VSS_E_OBJECT_NOT_FOUND
    0x8004230C: _RETURNED[4],  # VSS_E_VOLUME_NOT_SUPPORTED
    0x8004230E: _RETURNED[4],  # VSS_E_VOLUME_NOT_SUPPORTED_BY_PROVIDER
    0x8004230F: _RETURNED[12],  # VSS_E_UNEXPECTED_PROVIDER_ERROR
    0x80042313: _BUSY,  # VSS_E_FLUSH_WRITES_TIMEOUT
    0x80042314: _BUSY,  # VSS_E_HOLD_WRITES_TIMEOUT
    0x80042315: _WRITERS,  # VSS_E_UNEXPECTED_WRITER_ERROR
    0x80042316: _RETURNED[_IN_PROGRESS],  # VSS_E_SNAPSHOT_SET_IN_PROGRESS
    0x80042317: _RETURNED[8],  # VSS_E_MAXIMUM_NUMBER_OF_SNAPSHOTS_REACHED
    0x80042318: _WRITERS,  # VSS_E_WRITER_INFRASTRUCTURE
    0x80042319: _WRITERS,  # VSS_E_WRITER_NOT_RESPONDING
    0x8004231B: _RETURNED[5],  # VSS_E_UNSUPPORTED_CONTEXT
    0x8004231D: _RETURNED[7],  # VSS_E_VOLUME_IN_USE
    0x8004231F: _RETURNED[6],  # VSS_E_INSUFFICIENT_STORAGE
}


class System(Protocol):
    """What is asked of Windows: in ``pywin32.py`` of the one that runs, in tests of a model."""

    @property
    def error(self) -> type[Exception]:
        """Return pywintypes.com_error, which has an hresult and an excepinfo."""

    def initialized(self) -> AbstractContextManager[None]:
        """Let the thread use COM meanwhile."""

    def services(self) -> Any:
        r"""Return the SWbemServices object of \\.\root\cimv2."""

    def records_folder(self) -> Path:
        """Return the machine-wide folder of records, which administrators alone can change."""

    def myself(self) -> dict[str, Any]:
        """Return what no other process is at any time: "pid" and "started"."""

    def is_alive(self, owner: dict[str, Any]) -> bool:
        """Whether the process that ``myself`` returned this still runs."""


class CopyInProgressError(SnapshotError):
    """Another program makes a shadow copy just now."""


@dataclass(frozen=True, slots=True)
class Copy:
    r"""A shadow copy as Windows tells of it."""

    id: str  # "{GUID}"
    volume: str  # \\?\Volume{GUID}\
    device: str  # \\?\GLOBALROOT\Device\HarddiskVolumeShadowCopyN; N is another after each start of Windows
    made: datetime
    client_accessible: bool


class Wmi:
    """Shadow copies by WMI. Every call has a thread of its own, which an interrupt lets come to its end.

    Raises SnapshotError with what helps.
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def copies(self) -> list[Copy]:
        """Return all shadow copies of the machine."""

        def ask(services: Any) -> list[Copy]:
            services.Get(_CLASS)  # a query of a class that is not there may just find nothing
            return [_copy(item) for item in services.ExecQuery("SELECT * FROM Win32_ShadowCopy")]

        return self._run(ask)

    def create(self, volume: str, name: str, made: Callable[[str], None]) -> None:
        r"""Make a persistent shadow copy of a volume (``\\?\Volume{GUID}\``, ``name`` for messages).

        ``made`` is told its id before an interrupt can come between. Raises CopyInProgressError as well.
        """

        def ask(services: Any) -> int:
            kind = services.Get(_CLASS)
            given = kind.Methods_.Item("Create").InParameters.SpawnInstance_()
            given.Properties_.Item("Volume").Value = volume
            given.Properties_.Item("Context").Value = "ClientAccessible"
            answer = kind.ExecMethod_("Create", given)
            code = int(_value(answer, "ReturnValue"))
            if code == 0:
                made(str(_value(answer, "ShadowID")))
            return code

        code = self._run(ask, name)
        if code != 0:
            raise _returned(code, name)

    def delete(self, shadow: str) -> None:
        """Remove a shadow copy; one that is gone is no error."""
        if not _ID.fullmatch(shadow):
            raise SnapshotError(f"{shadow!r} is no shadow copy's id")

        def ask(services: Any) -> None:
            services.Get(_CLASS)
            try:
                services.Get(f"{_CLASS}.ID='{shadow}'").Delete_()
            except self._system.error as error:
                if _code(error) not in (_NOT_FOUND, 0x80042308):
                    raise

        self._run(ask)

    def _run(self, ask: Callable[[Any], Result], name: str = "") -> Result:
        def work() -> Result:
            with self._system.initialized():
                try:
                    return ask(self._system.services())
                except self._system.error as error:
                    failure = _failed(error, name)
                raise failure  # here, where no traceback holds on to COM's objects

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work).result()


def _value(item: Any, name: str) -> Any:
    return item.Properties_.Item(name).Value


def _copy(item: Any) -> Copy:
    return Copy(
        id=str(_value(item, "ID")),
        volume=str(_value(item, "VolumeName")),
        device=str(_value(item, "DeviceObject")),
        made=_time(str(_value(item, "InstallDate"))),
        client_accessible=bool(_value(item, "ClientAccessible")),
    )


def _time(text: str) -> datetime:
    """Return a time as WMI writes it: 20221106195820.123456+180, the last in minutes from UTC."""
    found = _TIME.fullmatch(text)
    if found is None:
        return datetime.fromtimestamp(0, UTC)
    zone = timezone(timedelta(minutes=int(found[2])))
    return datetime.strptime(found[1], "%Y%m%d%H%M%S.%f").replace(tzinfo=zone)


def _code(error: Any) -> int:
    """Return an error's number, without a sign."""
    code = int(error.hresult) & 0xFFFFFFFF
    if code == _DISP_E_EXCEPTION and error.excepinfo and error.excepinfo[5]:
        code = int(error.excepinfo[5]) & 0xFFFFFFFF
    return code


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _returned(code: int, name: str) -> SnapshotError:
    if code not in _RETURNED:
        return SnapshotError(f"Windows made no shadow copy (code {code})", path=_path(name), hint=_EVENTS)
    what, hint = _RETURNED[code]
    kind = CopyInProgressError if code == _IN_PROGRESS else SnapshotError
    return kind(what, path=_path(name), hint=hint)


def _failed(error: Any, name: str) -> SnapshotError:
    code = _code(error)
    if code not in _FAILED:
        said = error.excepinfo[2] if error.excepinfo and error.excepinfo[2] else error.strerror or ""
        what = f"the shadow copy service failed ({code:#010x}{': ' if said else ''}{said.strip()})"
        return SnapshotError(what, path=_path(name), hint=_EVENTS)
    what, hint = _FAILED[code]
    kind = CopyInProgressError if _FAILED[code] == _RETURNED[_IN_PROGRESS] else SnapshotError
    return kind(what, path=_path(name), hint=hint)
