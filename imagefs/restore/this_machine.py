"""What restoring needs to know of the machine that it runs on, chosen by system here and nowhere else.

``find_device(target)`` returns the ``TargetDevice`` of a path, None where it is none's.

``refuse_unsafe(target, protected=, span=)`` raises RefusedError where overwriting it would do harm: ``guard``
tells what that means.

``open_device(target)`` returns a device opened for writing, as a ``Target``, nobody else using it: locked,
and what is mounted of it taken away. Raises RefusedError.

``describe(target, sector_size=)`` returns the ``Description`` of a device or file; raises RefusedError.
"""

import sys

if sys.platform == "win32":
    from imagefs.restore.windows_devices import describe, find_device, open_device, refuse_unsafe
else:
    from imagefs.restore.guard import refuse_unsafe
    from imagefs.restore.linux_devices import describe, find_device, open_device

__all__ = ["describe", "find_device", "open_device", "refuse_unsafe"]
