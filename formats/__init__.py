"""What the bytes of an image mean. Pure: no devices, no mounting, no user interface."""
