"""Run the tests of Windows' code under wine: ``python -m tests.wine [pytest's arguments]``.

What is in ``wine_*.py`` runs here and starts Windows' Python; ``wine_inside.py`` has that run tests itself.
"""

import os
import subprocess
import sys

from tests.wine.environment import ROOT, set_up


def _main(arguments: list[str]) -> int:
    set_up()
    chosen = arguments if any("wine_" in word for word in arguments) else [*arguments, "tests/wine"]
    options = ["-p", "no:cacheprovider", "-o", "python_files=wine_*.py", "--durations=10"]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    return subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, "CI": "1"}).returncode


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
