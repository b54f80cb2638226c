"""The calls of Windows that mount points need, and nothing more: a test puts a model in their place.

Source: Microsoft, "Windows API index" (https://learn.microsoft.com/windows/win32/api/), the pages of
synchapi.h, memoryapi.h, fileapi.h, securitybaseapi.h, sddl.h and winnetwk.h.
"""

import sys
from abc import ABC, abstractmethod


class Calls(ABC):
    """What ``windows_mounts`` asks of Windows. A handle is a number; errors are OSErrors."""

    @abstractmethod
    def logical_drives(self) -> int:
        """Return the drive letters in use, bit 0 being A:."""

    @abstractmethod
    def is_remembered(self, letter: str) -> bool:
        """Tell whether a letter ("X") is kept for a network drive, connected or not."""

    @abstractmethod
    def user(self) -> str:
        """Return the SID of this process' user."""

    @abstractmethod
    def is_elevated(self) -> bool:
        """Tell whether this process runs "as administrator", unlike the user's other programs."""

    @abstractmethod
    def create_event(self, name: str, descriptor: str) -> int | None:
        """Create a named event with a descriptor in SDDL; None when the name is taken."""

    @abstractmethod
    def open_event(self, name: str) -> int | None:
        """Open a named event; None when there is none. Raises PermissionError."""

    @abstractmethod
    def set_event(self, handle: int) -> None:
        """Set an event."""

    @abstractmethod
    def wait_for(self, handle: int) -> None:
        """Wait until an event is set."""

    @abstractmethod
    def share_number(self, name: str, descriptor: str, number: int) -> int:
        """Show a number to other processes under a name, until the returned handle is closed."""

    @abstractmethod
    def shared_number(self, name: str) -> int:
        """Return the number that is shown under a name, 0 when there is none. Raises PermissionError."""

    @abstractmethod
    def close(self, handle: int) -> None:
        """Close what was created or opened."""

    @abstractmethod
    def end_process(self, number: int) -> None:
        """End a process by its number, without a word to it. None of that number is no error."""

    @abstractmethod
    def winfsp_folder(self) -> str:
        """Return where WinFsp is installed; "" when it is not."""


def calls() -> Calls:
    """Return Windows' own calls."""
    if sys.platform == "win32":
        return _WindowsCalls()
    raise NotImplementedError(f"{sys.platform} is not Windows")


if sys.platform == "win32":
    import ctypes
    import winreg
    from ctypes import wintypes

    _ALREADY_EXISTS = 183  # winerror.h
    _FILE_NOT_FOUND = 2
    _INVALID_PARAMETER = 87  # of OpenProcess: no such process
    # WNetGetConnectionW for a letter that is kept: connected, under a long name, or not connected now. Other
    # codes say nothing about the letter: 1203 that some network is not there, 2250 that it is free.
    _OF_A_NETWORK = (0, 234, 1201)
    _EVENT_MODIFY_STATE, _SYNCHRONIZE = 0x0002, 0x00100000  # winnt.h
    _PAGE_READWRITE, _FILE_MAP_READ, _FILE_MAP_WRITE = 0x04, 0x0004, 0x0002
    _TOKEN_QUERY, _TOKEN_USER, _TOKEN_ELEVATION_TYPE = 0x0008, 1, 18
    _ELEVATED = 2  # TokenElevationTypeFull: of two tokens of a user the greater one
    _PROCESS_TERMINATE = 0x0001
    _INFINITE = 0xFFFFFFFF
    _SDDL_REVISION = 1
    _NUMBER_SIZE = 8  # bytes

    class _SecurityAttributes(ctypes.Structure):
        _fields_ = (
            ("length", wintypes.DWORD),
            ("descriptor", wintypes.LPVOID),
            ("inherit", wintypes.BOOL),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi = ctypes.WinDLL("advapi32", use_last_error=True)
    _mpr = ctypes.WinDLL("mpr")
    _HANDLE, _DWORD, _BOOL, _STR, _POINTER = (
        wintypes.HANDLE,
        wintypes.DWORD,
        wintypes.BOOL,
        wintypes.LPCWSTR,
        wintypes.LPVOID,
    )
    for _library, _name, _result, _arguments in (
        (_kernel, "GetLogicalDrives", _DWORD, ()),
        (_kernel, "CreateEventW", _HANDLE, (_POINTER, _BOOL, _BOOL, _STR)),
        (_kernel, "OpenEventW", _HANDLE, (_DWORD, _BOOL, _STR)),
        (_kernel, "SetEvent", _BOOL, (_HANDLE,)),
        (_kernel, "WaitForSingleObject", _DWORD, (_HANDLE, _DWORD)),
        (_kernel, "CloseHandle", _BOOL, (_HANDLE,)),
        (_kernel, "CreateFileMappingW", _HANDLE, (_HANDLE, _POINTER, _DWORD, _DWORD, _DWORD, _STR)),
        (_kernel, "OpenFileMappingW", _HANDLE, (_DWORD, _BOOL, _STR)),
        (_kernel, "MapViewOfFile", _POINTER, (_HANDLE, _DWORD, _DWORD, _DWORD, ctypes.c_size_t)),
        (_kernel, "UnmapViewOfFile", _BOOL, (_POINTER,)),
        (_kernel, "OpenProcess", _HANDLE, (_DWORD, _BOOL, _DWORD)),
        (_kernel, "TerminateProcess", _BOOL, (_HANDLE, wintypes.UINT)),
        (_kernel, "GetCurrentProcess", _HANDLE, ()),
        (_kernel, "LocalFree", _POINTER, (_POINTER,)),
        (_advapi, "OpenProcessToken", _BOOL, (_HANDLE, _DWORD, _POINTER)),
        (_advapi, "GetTokenInformation", _BOOL, (_HANDLE, ctypes.c_int, _POINTER, _DWORD, _POINTER)),
        (_advapi, "ConvertSidToStringSidW", _BOOL, (_POINTER, _POINTER)),
        (
            _advapi,
            "ConvertStringSecurityDescriptorToSecurityDescriptorW",
            _BOOL,
            (_STR, _DWORD, _POINTER, _POINTER),
        ),
        (_mpr, "WNetGetConnectionW", _DWORD, (_STR, wintypes.LPWSTR, _POINTER)),
    ):
        _function = getattr(_library, _name)
        _function.restype, _function.argtypes = _result, _arguments

    def _error(code: int | None = None) -> OSError:
        return ctypes.WinError(ctypes.get_last_error() if code is None else code)

    class _Descriptor:
        """A security descriptor made of SDDL, as CreateEventW and others take it."""

        def __init__(self, text: str) -> None:
            self._memory = ctypes.c_void_p()
            made = _advapi.ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text, _SDDL_REVISION, ctypes.byref(self._memory), None
            )
            if not made:
                raise _error()
            size = ctypes.sizeof(_SecurityAttributes)
            self._attributes = _SecurityAttributes(size, self._memory, False)

        def __enter__(self) -> object:
            return ctypes.byref(self._attributes)

        def __exit__(self, *_: object) -> None:
            _kernel.LocalFree(self._memory)

    class _WindowsCalls(Calls):
        def logical_drives(self) -> int:
            return int(_kernel.GetLogicalDrives())

        def is_remembered(self, letter: str) -> bool:
            name = ctypes.create_unicode_buffer(1024)
            code = _mpr.WNetGetConnectionW(f"{letter}:", name, ctypes.byref(_DWORD(len(name))))
            return code in _OF_A_NETWORK

        def _token(self, kind: int) -> "ctypes.Array[ctypes.c_char]":
            """Return what this process' token tells, GetTokenInformation."""
            token = _HANDLE()
            if not _advapi.OpenProcessToken(_kernel.GetCurrentProcess(), _TOKEN_QUERY, ctypes.byref(token)):
                raise _error()
            buffer = ctypes.create_string_buffer(1024)
            try:
                got = _advapi.GetTokenInformation(token, kind, buffer, len(buffer), ctypes.byref(_DWORD()))
                if not got:
                    raise _error()
            finally:
                _kernel.CloseHandle(token)
            return buffer

        def is_elevated(self) -> bool:
            return int.from_bytes(self._token(_TOKEN_ELEVATION_TYPE).raw[:4], "little") == _ELEVATED

        def user(self) -> str:
            buffer = self._token(_TOKEN_USER)  # a pointer to the SID, which lies behind it
            text = wintypes.LPWSTR()
            sid = ctypes.c_void_p.from_buffer(buffer)
            if not _advapi.ConvertSidToStringSidW(sid, ctypes.byref(text)):
                raise _error()
            try:
                return str(text.value)
            finally:
                _kernel.LocalFree(text)

        def create_event(self, name: str, descriptor: str) -> int | None:
            with _Descriptor(descriptor) as attributes:
                ctypes.set_last_error(0)
                handle = _kernel.CreateEventW(attributes, True, False, name)
                code = ctypes.get_last_error()  # before memory is freed, which may set it too
            if not handle:
                raise _error(code)
            if code == _ALREADY_EXISTS:
                _kernel.CloseHandle(handle)
                return None
            return int(handle)

        def open_event(self, name: str) -> int | None:
            handle = _kernel.OpenEventW(_EVENT_MODIFY_STATE | _SYNCHRONIZE, False, name)
            if not handle:
                if ctypes.get_last_error() == _FILE_NOT_FOUND:
                    return None
                raise _error()
            return int(handle)

        def set_event(self, handle: int) -> None:
            if not _kernel.SetEvent(handle):
                raise _error()

        def wait_for(self, handle: int) -> None:
            if _kernel.WaitForSingleObject(handle, _INFINITE) == 0xFFFFFFFF:
                raise _error()

        def share_number(self, name: str, descriptor: str, number: int) -> int:
            with _Descriptor(descriptor) as attributes:
                nowhere = _HANDLE(-1)  # the paging file
                handle = _kernel.CreateFileMappingW(
                    nowhere, attributes, _PAGE_READWRITE, 0, _NUMBER_SIZE, name
                )
                if not handle:
                    raise _error()
            try:
                view = self._view(handle, _FILE_MAP_WRITE)
            except OSError:
                _kernel.CloseHandle(handle)
                raise
            ctypes.c_uint64.from_address(view).value = number
            _kernel.UnmapViewOfFile(view)
            return int(handle)

        def shared_number(self, name: str) -> int:
            handle = _kernel.OpenFileMappingW(_FILE_MAP_READ, False, name)
            if not handle:
                if ctypes.get_last_error() == _FILE_NOT_FOUND:
                    return 0
                raise _error()
            try:
                view = self._view(handle, _FILE_MAP_READ)
                number = ctypes.c_uint64.from_address(view).value
                _kernel.UnmapViewOfFile(view)
            finally:
                _kernel.CloseHandle(handle)
            return number

        def _view(self, handle: int, access: int) -> int:
            view = _kernel.MapViewOfFile(handle, access, 0, 0, _NUMBER_SIZE)
            if not view:
                raise _error()
            return int(view)

        def close(self, handle: int) -> None:
            _kernel.CloseHandle(handle)

        def end_process(self, number: int) -> None:
            handle = _kernel.OpenProcess(_PROCESS_TERMINATE, False, number)
            if not handle:
                if ctypes.get_last_error() == _INVALID_PARAMETER:
                    return
                raise _error()
            try:
                if not _kernel.TerminateProcess(handle, 1):
                    raise _error()
            finally:
                _kernel.CloseHandle(handle)

        def winfsp_folder(self) -> str:
            # WinFsp is installed by a 32-bit installer ("WinFsp Tutorial", https://winfsp.dev/doc/WinFsp-Tutorial/).
            access = winreg.KEY_READ | winreg.KEY_WOW64_32KEY
            try:
                with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\WinFsp", 0, access) as key:
                    return str(winreg.QueryValueEx(key, "InstallDir")[0])
            except OSError:
                return ""
