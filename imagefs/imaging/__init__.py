"""Making images: what is read, which of it is stored, and how it gets into a set without ever harming it."""

from imagefs.imaging.job import backup, discard, resume

__all__ = ["backup", "discard", "resume"]
