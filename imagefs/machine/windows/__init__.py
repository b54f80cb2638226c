"""The disks and volumes of Windows: its calls, what they answer, and how a running system is read."""
