"""Mount an image over a stand-in of WinFsp's driver and print what is there: ``walk_mount IMAGE``.

Each line is a path, attributes, size, time of writing, number and the hash of what was read: on every system
the same.
"""

import hashlib
import sys
from pathlib import Path

import imagefs
from tests.mounters.winfsp.adapting import mounted
from tests.mounters.winfsp.loading import fresh_library


def main(image: Path) -> None:
    """Print all of an image but its raw disks and partitions."""
    with fresh_library() as library, imagefs.open(image) as source, mounted(library, source.tree()) as volume:
        for path, entry in volume.walk():
            digest = "-"
            if not entry.info.is_directory and not path.endswith(".raw"):
                digest = hashlib.sha256(volume.content(path)).hexdigest()
            info = entry.info
            print(ascii(path), hex(info.attributes), info.size, info.written, info.index, digest)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
