"""Which bytes of a volume hold anything, so that an image stores used blocks only.

Told by the file system's own allocation structures. Wrongly "used" costs room, wrongly "free" loses data: so
what is not understood, contradicts itself or may not be up to date makes everything used, with a warning.
"""

from imagefs.imaging.used_space.base import UsedSpace
from imagefs.imaging.used_space.choose import used_space

__all__ = ["UsedSpace", "used_space"]
