"""Run the guest tests: ``python -m tests.vm [pytest's arguments]``."""

import shlex
import sys

from tests.vm.machine import run_guest

if __name__ == "__main__":
    sys.exit(run_guest(shlex.join(sys.argv[1:])))
