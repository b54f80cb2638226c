"""Run by Windows' Python: the command line, one run after the other in one process, as it is loaded once.

Takes orders from standard input, a JSON document on each line, and answers each with an exit code. Its
argument is the file that tells why it ended.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any


def _serve() -> None:
    _put_in_place(sys.argv[1], 2)
    from imagefs.cli import COMMANDS

    for command in COMMANDS:
        import_module(f"imagefs.cli.{command.replace('-', '_')}")
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print("ready", file=answers, flush=True)
    for line in orders:
        print(_run(json.loads(line)), file=answers, flush=True)


def _put_in_place(name: str, number: int) -> None:
    """Let a standard stream lead to a file."""
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    fd = os.open(name, write if number else os.O_RDONLY, 0o600)
    os.dup2(fd, number)
    os.close(fd)


def _run(order: dict[str, Any]) -> int:
    from imagefs.cli import main

    kept = sys.stdin, sys.stdout, sys.stderr
    for number, name in enumerate(order["streams"]):
        _put_in_place(name, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.pop("IMAGEFS_PASSWORD", None)
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    log, sys.argv = sys.argv[1], ["imagefs", *order["arguments"]]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = kept
        sys.argv = ["", log]
        for number, name in enumerate((os.devnull, os.devnull, log)):
            _put_in_place(name, number)
    raise AssertionError("main returned")


if __name__ == "__main__":
    _serve()
