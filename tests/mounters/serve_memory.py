"""Serve the memory tree: python -m tests.mounters.serve_memory MOUNTPOINT MECHANISM [allow_other]."""

import logging
import sys

from mounters.controller import MountError, MountOptions, ready_fd, report_failure, report_ready, serve
from tests.mounters.memory_tree import MemoryTree


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    mountpoint, mechanism, *flags = sys.argv[1:]
    fd = ready_fd()
    tree = MemoryTree()
    options = MountOptions(mechanism=mechanism, allow_other="allow_other" in flags, source="ünit, test\\")
    try:
        serve(
            tree, mountpoint, options, ready=lambda where: report_ready(fd, where) if fd is not None else None
        )
    except MountError as error:
        if fd is not None:
            report_failure(fd, error.exit_code, str(error))
        return error.exit_code
    return 9 if tree.opened else 0  # every handle is closed at the end


if __name__ == "__main__":
    sys.exit(main())
