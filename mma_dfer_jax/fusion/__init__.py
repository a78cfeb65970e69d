"""What lets the two streams look at each other. A file is a fusion; see `parts.Fusion`."""
