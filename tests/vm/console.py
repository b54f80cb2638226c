"""A machine's serial console: what it says is waited for, what it is told is typed.

QEMU emulates the processor (TCG): no test counts on KVM, and a system takes about a minute to come up.
"""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fixtures.system_disks import Firmware
from fixtures.tools import PACKAGES, MissingToolError, find_tool, tool_environment

PACKAGES.setdefault("qemu-system-x86_64", "qemu-system-x86")

BOOT_SECONDS = 300.0  # an idle machine needs a fifth of it
COMMAND_SECONDS = 120.0
_OVMF = Path("/usr/share/OVMF")


class ConsoleError(AssertionError):
    """The machine did not say what was waited for; the message ends with what it said last."""


class Console:
    """The console of a machine that a command runs in the foreground, on its standard input and output.

    Leaving it as a context manager ends the command and all it has started. One thread at a time.
    """

    def __init__(self, command: list[str]) -> None:
        self._said = ""
        self._seen = 0  # where the last match ended
        self._ended = False
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=tool_environment(),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        """All that was printed until now."""
        with self._more:
            return self._said

    def _read(self) -> None:
        assert self._process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while data := os.read(self._process.stdout.fileno(), 65536):
            with self._more:
                self._said += decoder.decode(data)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until something matches that was printed behind the last match."""
        deadline = time.monotonic() + seconds
        with self._more:
            while not (found := re.compile(pattern).search(self._said, self._seen)):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "it ended" if self._ended else f"not in {seconds:.0f} s"
                    raise ConsoleError(f"no {pattern!r}: {why}; the last words:\n{self._said[-3000:]}")
                self._more.wait(left)
            self._seen = found.end()
            return found

    def type(self, text: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def log_in(self) -> None:
        """Wait for the login prompt of a `debian_disk`, and log in as root, to a shell without prompts."""
        self.wait_for("debian login: ", BOOT_SECONDS)
        self.type("root")
        self.wait_for(r"root@debian:\S*# ", COMMAND_SECONDS)
        self.type("dmesg -n 1; stty -echo; exec env PS1= TERM=dumb sh")
        self.type("echo rea''dy")
        self.wait_for(r"ready\r?\n", COMMAND_SECONDS)

    def run(self, command: str) -> str:
        """Run a command of the shell and return what it printed; exit codes but 0 are a ConsoleError."""
        before = self._seen
        self.type(f"{command}\necho E''ND=$?")
        found = self.wait_for(r"END=([0-9]+)\r?\n", COMMAND_SECONDS)
        output = self.said[before : found.start()].replace("\r", "")
        if found[1] != "0":
            raise ConsoleError(f"{command}: exit code {found[1]}: {output}")
        return output

    def power_off(self) -> int:
        """Shut the system down, wait until the machine is gone, and return the command's exit code."""
        self.type("systemctl poweroff")
        return self.wait(COMMAND_SECONDS)

    def wait(self, seconds: float) -> int:
        """Wait until the command ends, and return its exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ConsoleError(f"it still runs; the last words:\n{self.said[-3000:]}") from None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # the session is the command's own
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(10)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def machine(disk: Path, firmware: Firmware, bus: Literal["ahci", "virtio"] = "ahci") -> Iterator[Console]:
    """Start a machine from a raw disk file, which it changes, and log in; it is stopped whatever happens."""
    device = {"ahci": "ide-hd,bus=ide.0", "virtio": "virtio-blk-pci"}[bus]
    command = [
        find_tool("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max",
        "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe", "-device", f"{device},drive=disk",
    ]  # fmt: skip
    if firmware == "uefi":
        code, settings = _OVMF / "OVMF_CODE_4M.fd", _OVMF / "OVMF_VARS_4M.fd"
        if not code.exists():
            raise MissingToolError(str(code), "ovmf")
        command += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
        command += ["-drive", f"if=pflash,format=raw,snapshot=on,file={settings}"]
    with Console(command) as console:
        console.log_in()
        yield console
