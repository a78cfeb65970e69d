"""Which frames count. Each file is a frame mask; see `parts.FrameMask`."""
