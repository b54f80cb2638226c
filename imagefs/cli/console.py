"""Consoles and pipes: in which letters we write, what a closed pipe is, and how a console's end ends us.

Source for Windows: Microsoft, "Console functions" (HandlerRoutine, GetConsoleMode,
https://learn.microsoft.com/windows/console/) and "Parsing C command-line arguments".
"""

import _thread
import errno
import io
import os
import re
import stat
import sys
import threading
from collections.abc import Sequence
from typing import Any

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.GetConsoleMode.argtypes = [wintypes.HANDLE, ctypes.POINTER(wintypes.DWORD)]
    _Handler = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
    _kernel.SetConsoleCtrlHandler.argtypes = [_Handler, wintypes.BOOL]

_BREAK, _CLOSE, _LOGOFF, _SHUTDOWN = 1, 2, 5, 6  # CTRL_*_EVENT
_TIME_TO_END = 4.5  # seconds; Windows gives five to what runs in a console that is closed
# A quote can't be in a path of Windows: \" at the end of an argument is a quote, and takes in what follows.
_SWALLOWED = re.compile(r'(?:[A-Za-z]:|\\\\)[^"]*"')

_handler: Any = None  # kept from being collected


class _Output(io.FileIO):
    """Standard output or error where it is no console; a pipe that nobody reads any more is one error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise output_error(error, self.fileno()) from None


def output_error(error: OSError, fd: int) -> OSError:
    """Return the error of a write; EINVAL is Windows' word for a pipe that nobody reads any more."""
    if error.errno == errno.EINVAL and stat.S_ISFIFO(os.fstat(fd).st_mode):
        return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return error


def set_encodings() -> None:
    """Make sure that no name is too strange to be printed: what an encoding lacks is written as an escape.

    On Windows, what goes to files and pipes is UTF-8 with plain line feeds, as elsewhere; a console takes
    all of Unicode.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if sys.platform == "win32" and not is_console(stream):
            setattr(sys, name, utf8_output(stream, chosen="PYTHONIOENCODING" in os.environ))
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def utf8_output(stream: io.TextIOWrapper, *, chosen: bool = False) -> io.TextIOWrapper:
    """Return a stream to the same file in UTF-8, or in its own encoding where the user has chosen that."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding if chosen else "utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering,
    )


def is_console(stream: Any) -> bool:
    """Tell whether a stream is a terminal. Windows' NUL, which isatty takes for one, is none."""
    if sys.platform == "win32":
        try:
            handle = msvcrt.get_osfhandle(stream.fileno())
        except (OSError, ValueError):
            return False
        return bool(_kernel.GetConsoleMode(handle, ctypes.byref(wintypes.DWORD())))
    return bool(stream.isatty())


def heed_console(ended: threading.Event) -> None:
    """Windows: let Ctrl-Break, and a console that is closed, interrupt us as Ctrl-C does.

    Windows ends a process once the handler of a closed console returns: it waits for ``ended``.
    """
    if sys.platform == "win32":
        global _handler  # noqa: PLW0603  (said once for the process)
        _handler = _Handler(lambda kind: console_event(kind, ended))
        _kernel.SetConsoleCtrlHandler(_handler, True)


def console_event(kind: int, ended: threading.Event) -> bool:
    """Answer an event of the console, in a thread of Windows'; False leaves it to Python, as Ctrl-C is."""
    if kind not in (_BREAK, _CLOSE, _LOGOFF, _SHUTDOWN):
        return False
    _thread.interrupt_main()  # SIGBREAK, which Python has for it, would not end a sleep
    if kind != _BREAK:
        ended.wait(_TIME_TO_END)
    return True


def swallowed_argument(arguments: Sequence[str]) -> str:
    r"""Return the argument that has swallowed others, as "E:\" does on Windows' command line; "" if none."""
    return next((argument for argument in arguments if _SWALLOWED.match(argument)), "")
