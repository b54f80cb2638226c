"""A Windows with shadow copies, as win32com's late-bound objects show it.

It lives in a folder, and so survives the processes that use it.

Shapes: Microsoft, "Win32_ShadowCopy class", "Create method of the Win32_ShadowCopy class"; SWbemServices,
SWbemObject, SWbemMethod, SWbemPropertySet of "Scripting API Objects"; pywin32's com_error, whose fields were
seen at pywin32 312.
"""

import itertools
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DISP_E_EXCEPTION = -2147352567
NOT_FOUND = 0x80041002
ACCESS_DENIED = 0x80041003
NOT_INITIALIZED = 0x800401F0  # CO_E_NOTINITIALIZED


class ComError(Exception):
    """pywintypes.com_error."""

    def __init__(self, hresult: int, strerror: str, excepinfo: tuple[Any, ...] | None) -> None:
        super().__init__(hresult, strerror, excepinfo, None)
        self.hresult, self.strerror, self.excepinfo, self.argerror = self.args


def failure(code: int, said: str = "Generic failure ") -> ComError:
    """Return what an object of WMI's scripting interface raises: the code is inside."""
    signed = code - (1 << 32) if code & 0x80000000 else code
    return ComError(DISP_E_EXCEPTION, "Exception occurred.", (0, "SWbemObjectEx", said, None, 0, signed))


class Machine:
    """See ``wmi.System``. ``faults`` are by the number of a call that reaches WMI, from 1.

    A fault is a ComError, or a function that is called: before the call where it is in ``faults``, after it
    in ``faults_after``. ``returned`` are the codes that Create gives next instead of doing anything.
    """

    error = ComError

    def __init__(self, root: Path, process: str = "this") -> None:
        self.root = root
        self.process = process
        self.dead: set[str] = set()
        self.faults: dict[int, Any] = {}
        self.faults_after: dict[int, Any] = {}
        self.returned: list[int] = []
        self.calls: list[str] = []
        self.has_vss = True
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._com = threading.local()
        self._sessions = itertools.count(1)
        root.mkdir(exist_ok=True)

    # --- What it is made of ---

    def add_volume(self, data: bytes, file_system: str = "NTFS") -> str:
        """Add a volume; returns its name."""
        state = self._state()
        name = f"\\\\?\\Volume{{{uuid.UUID(int=len(state['volumes']) + 1)}}}\\"
        file = self.root / f"volume-{len(state['volumes']) + 1}"
        file.write_bytes(data)
        state["volumes"][name] = {"file": str(file), "file_system": file_system}
        self._save(state)
        return name

    def file_of(self, volume: str) -> Path:
        """Return the file that is a volume."""
        return Path(self._state()["volumes"][volume]["file"])

    def device_file(self, device: str) -> Path:
        r"""Return the file that is a shadow copy's device; raises FileNotFoundError as CreateFile would."""
        prefix = "\\\\?\\GLOBALROOT\\Device\\"
        assert device.startswith(prefix)
        found = self.root / device.removeprefix(prefix)
        if not found.exists():
            raise FileNotFoundError(2, "The system cannot find the file specified", device)
        return found

    @property
    def shadows(self) -> list[dict[str, Any]]:
        """All shadow copies, as their properties."""
        return list(self._state()["shadows"])

    def add_shadow(self, volume: str, *, accessible: bool = True, made: datetime | None = None) -> str:
        """Make a shadow copy, as any program could; returns its id."""
        state = self._state()
        state["serial"] += 1
        shadow = "{" + str(uuid.uuid4()).upper() + "}"
        name = f"HarddiskVolumeShadowCopy{state['serial']}"
        shutil.copyfile(state["volumes"][volume]["file"], self.root / name)
        moment = (made or datetime.now(UTC)).astimezone(UTC)
        state["shadows"].append(
            {
                "ID": shadow,
                "VolumeName": volume,
                "DeviceObject": f"\\\\?\\GLOBALROOT\\Device\\{name}",
                "InstallDate": f"{moment:%Y%m%d%H%M%S}.{moment.microsecond:06}+000",
                "State": 12,
                "ClientAccessible": accessible,
                "Persistent": True,
                "SetID": "{" + str(uuid.uuid4()).upper() + "}",
            }
        )
        self._save(state)
        return shadow

    def lose(self, shadow: str) -> None:
        """Remove a shadow copy, as Windows does where its storage is full."""
        state = self._state()
        gone = [one for one in state["shadows"] if one["ID"] == shadow]
        state["shadows"] = [one for one in state["shadows"] if one["ID"] != shadow]
        self._save(state)
        for one in gone:
            self.device_file(one["DeviceObject"]).unlink()

    def restart(self) -> None:
        """Start anew: devices have other numbers, no process lives."""
        state = self._state()
        for one in state["shadows"]:
            state["serial"] += 7
            name = f"HarddiskVolumeShadowCopy{state['serial']}"
            self.device_file(one["DeviceObject"]).rename(self.root / name)
            one["DeviceObject"] = f"\\\\?\\GLOBALROOT\\Device\\{name}"
        self._save(state)
        self.dead.add(self.process)

    def _state(self) -> dict[str, Any]:
        file = self.root / "state.json"
        if not file.exists():
            return {"volumes": {}, "shadows": [], "serial": 0}
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def _save(self, state: dict[str, Any]) -> None:
        temporary = self.root / "state.new"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.root / "state.json")

    # --- wmi.System ---

    @contextmanager
    def initialized(self) -> Iterator[None]:
        """CoInitializeEx and CoUninitialize of a thread; its objects end with it."""
        self._com.session = next(self._sessions)
        try:
            yield
        finally:
            self._com.session = 0

    def services(self) -> "Services":
        """Return the object of the namespace."""
        self.call("connect", self._session())
        return Services(self, self._session())

    def records_folder(self) -> Path:
        """Return the folder of records."""
        folder = self.root / "records"
        folder.mkdir(exist_ok=True)
        return folder

    def myself(self) -> dict[str, Any]:
        """Return the process that the model plays."""
        return {"pid": os.getpid(), "started": self.process}

    def is_alive(self, owner: dict[str, Any]) -> bool:
        """Whether nobody said that it is dead."""
        return owner["started"] not in self.dead

    # --- Calls ---

    def _session(self) -> int:
        return getattr(self._com, "session", 0)

    def call(self, name: str, session: int) -> int:
        """Count a call that reaches WMI; raises what it is to fail with."""
        if not session or session != self._session():
            raise ComError(NOT_INITIALIZED - (1 << 32), "CoInitialize has not been called.", None)
        with self._lock:
            number = next(self._numbers)
            self.calls.append(name)
        _fail(self.faults.get(number))
        return number

    def called(self, number: int) -> None:
        """Let a call fail whose work is done."""
        _fail(self.faults_after.get(number))

    def create(self, volume: str, context: str) -> tuple[int, str | None]:
        """Do what Create does, and return its code and the id."""
        if self.returned:
            code = self.returned.pop(0)
            if code:
                return code, None
        if context != "ClientAccessible":
            return 5, None
        found = self._state()["volumes"].get(volume)
        if found is None:
            return 3, None
        if found["file_system"] != "NTFS":
            return 4, None
        return 0, self.add_shadow(volume)


def _fail(fault: Any) -> None:
    if isinstance(fault, BaseException):
        raise fault
    if fault is not None:
        fault()


class Value:
    """SWbemProperty."""

    def __init__(self, value: Any = None) -> None:
        self.Value = value


class Items:
    """SWbemPropertySet, SWbemMethodSet: an unknown name is an error, as there."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def Item(self, name: str) -> Any:
        if name not in self._items:
            raise failure(NOT_FOUND, "Not found ")
        return self._items[name]


class Parameters:
    """An instance of a method's parameters."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.Properties_ = Items({name: Value(value) for name, value in values.items()})


class InParameters:
    """SWbemMethod.InParameters."""

    def SpawnInstance_(self) -> Parameters:
        return Parameters({"Volume": None, "Context": "ClientAccessible"})


class Method:
    """SWbemMethod."""

    def __init__(self) -> None:
        self.InParameters = InParameters()


class Class:
    """The class Win32_ShadowCopy, as an SWbemObject."""

    def __init__(self, machine: Machine, session: int) -> None:
        self._machine, self._session = machine, session
        self.Methods_ = Items({"Create": Method()})

    def ExecMethod_(self, name: str, given: Parameters) -> Parameters:
        assert name == "Create"
        number = self._machine.call("Create", self._session)
        volume, context = (given.Properties_.Item(one).Value for one in ("Volume", "Context"))
        code, shadow = self._machine.create(volume, context)
        self._machine.called(number)
        return Parameters({"ReturnValue": code, "ShadowID": shadow})


class Instance:
    """A shadow copy, as an SWbemObject."""

    def __init__(self, machine: Machine, session: int, values: dict[str, Any]) -> None:
        self._machine, self._session, self._id = machine, session, values["ID"]
        self.Properties_ = Items({name: Value(value) for name, value in values.items()})

    def Delete_(self) -> None:
        number = self._machine.call("Delete", self._session)
        if self._id not in {one["ID"] for one in self._machine.shadows}:
            raise failure(NOT_FOUND, "Not found ")
        self._machine.lose(self._id)
        self._machine.called(number)


class Services:
    """SWbemServices."""

    def __init__(self, machine: Machine, session: int) -> None:
        self._machine, self._session = machine, session

    def Get(self, path: str) -> Any:
        self._machine.call("Get", self._session)
        if not self._machine.has_vss:
            raise failure(NOT_FOUND, "Not found ")
        if path == "Win32_ShadowCopy":
            return Class(self._machine, self._session)
        found = re.fullmatch(r"Win32_ShadowCopy\.ID='(.*)'", path)
        assert found is not None, path
        for one in self._machine.shadows:
            if one["ID"].lower() == found[1].lower():
                return Instance(self._machine, self._session, one)
        raise failure(NOT_FOUND, "Not found ")

    def ExecQuery(self, query: str) -> Iterator[Instance]:
        """Return at once: errors come when the result is gone through, as with wbemFlagReturnImmediately."""
        assert query == "SELECT * FROM Win32_ShadowCopy", query
        return self._results()

    def _results(self) -> Iterator[Instance]:
        number = self._machine.call("ExecQuery", self._session)
        for one in self._machine.shadows:
            yield Instance(self._machine, self._session, one)
        self._machine.called(number)
