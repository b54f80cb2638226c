"""The command line from a process that has it loaded: what starts a hundred times starts quickly."""

from pathlib import Path

from tests.conftest import Ran
from tests.warm import Warm

started: list[Warm] = []  # one at most: the session's


def run_quickly(*arguments: str | Path, password: str | None = None) -> Ran:
    """Run the command line without a terminal; output and errors are one text, in order."""
    (warm,) = started
    code = warm.run(*arguments, password=password)
    return Ran(code, warm.errors.encode(), warm.errors)
