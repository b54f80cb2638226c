"""What imaging needs to know of the machine that it runs on, chosen by system here and nowhere else.

``is_device(path)`` tells whether a source's name is that of a disk, partition or volume of this machine;
OSErrors pass.

``open_device(wanted, owned)`` returns it opened for reading, as an ``OpenedDevice``, nobody writing to it
meanwhile: in use it is refused, or a snapshot is read in its place. What has to be closed or removed goes to
``owned``. Raises as ``open_source`` does.

``hold_file(wanted, fd, spans, owned)`` makes as sure as can be that nobody writes to a disk file, open as
``fd``, while it is read. ``spans`` are the starts and ends of the partitions to image. Returns lines to be
shown; raises RefusedError where somebody does, unless ``wanted.live``.

``drop_snapshots(name)`` removes those that a backup kept which is unfinished no more; raises SnapshotError.

``disk_paths()`` returns this machine's disks by their number; ``volume_path(text)`` the volume that a name
such as ``C:`` means, None for other names; raises UsageError where there is no such volume.
"""

import sys

if sys.platform == "win32":
    from imagefs.imaging.windows_source import (
        disk_paths,
        drop_snapshots,
        hold_file,
        is_device,
        open_device,
        volume_path,
    )
else:
    from imagefs.imaging.device_source import (
        disk_paths,
        drop_snapshots,
        hold_file,
        is_device,
        open_device,
        volume_path,
    )

__all__ = ["disk_paths", "drop_snapshots", "hold_file", "is_device", "open_device", "volume_path"]
