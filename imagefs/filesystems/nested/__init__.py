"""Volumes inside volumes, opened by C libraries that read hostile bytes, each in a process of its own."""
