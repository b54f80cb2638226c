"""Images as disks of other programs: over the network, as other formats, as a running machine."""
