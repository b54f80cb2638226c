"""What restoring needs to know of the machine that it runs on, chosen by system here and nowhere else.

``target_path(text)`` returns the path that a target's name means; raises UsageError.

``find_device(target)`` returns the ``TargetDevice`` of a path, None where it is none's.

``refuse_unsafe(target, protected=, span=)`` raises RefusedError where overwriting it would do harm: ``guard``
tells what that means.

``open_device(target)`` returns a device opened for writing, as a ``Target``, nobody else using it: locked,
and what is mounted of it taken away. Raises RefusedError.

``describe(target, sector_size=)`` returns the ``Description`` of a device or file; raises RefusedError.

``same_id(target, disk_id)`` returns a line where that id will be another disk's as well, and that does harm.
"""

import sys

if sys.platform == "win32":
    from imagefs.restore.windows_devices import (
        describe,
        find_device,
        open_device,
        refuse_unsafe,
        same_id,
        target_path,
    )
else:
    from imagefs.restore.guard import refuse_unsafe
    from imagefs.restore.linux_devices import describe, find_device, open_device, same_id, target_path

__all__ = ["describe", "find_device", "open_device", "refuse_unsafe", "same_id", "target_path"]
