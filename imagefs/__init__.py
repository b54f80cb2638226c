"""Disk-image backups shown as disks, partitions and files, at every point in time they hold.

::

    import imagefs

    with imagefs.open("B:/backups/2394E9AA621DDC3A-00-00.mrimgx") as source:
        tree = source.tree()
        with tree.open(tree.resolve("disk4/p1/readme.txt")) as file:
            print(file.read(0, file.size))
"""

from imagefs.source import Source, open
from imagefs.tree import ImageTree

__all__ = ["ImageTree", "Source", "open"]
