"""Benchmarks against the tools that people use now: ``make bench``, or ``python -m tests.benchmarks mounts``.

Everything is built on a tmpfs and runs in turn with the other tools, several times; medians and their ratios
are printed. A ratio above 1 means that imagefs is faster. Nothing here fails when a figure is bad.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from tests.benchmarks import decoding, hashing, imaging, mounts, restoring

BENCHMARKS = {
    "mounts": mounts.run,
    "imaging": imaging.run,
    "restoring": restoring.run,
    "hashing": hashing.run,
    "decoding": decoding.run,
}


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=[[], *BENCHMARKS], help="all, if none is named")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a folder on a tmpfs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tenth of everything")
    parser.add_argument("--keep", type=Path, help="build here and keep, or use what is here")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="imagefs-bench-", dir=options.folder))
    try:
        for name in options.which or BENCHMARKS:
            (folder / name).mkdir(parents=True, exist_ok=True)
            BENCHMARKS[name](folder / name, options.runs, small=options.small)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
