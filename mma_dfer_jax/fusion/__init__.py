"""What exchanges information between the streams. Each file is a fusion; see `parts.Fusion`."""
