"""The machine's disks, their partitions and what is on them, in one form on every system.

``list_disks()`` returns them; ``imagefs disks`` shows it. Their numbers are in the names that sources have:
``disk0``, ``disk0/p2``.
"""

import sys

from imagefs.disks.shape import Disk, DiskList, Encryption, LooseVolume, Partition, document

if sys.platform == "win32":
    from imagefs.disks.windows_running import list_disks
else:
    from imagefs.disks.linux_devices import list_disks

__all__ = ["Disk", "DiskList", "Encryption", "LooseVolume", "Partition", "document", "list_disks"]
