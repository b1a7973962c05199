"""What every room may use: files, devices, number formats, seeds, memory."""
