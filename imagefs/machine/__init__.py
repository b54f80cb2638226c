"""The machine imagefs runs on: its block devices, who uses them, and how they are read."""
