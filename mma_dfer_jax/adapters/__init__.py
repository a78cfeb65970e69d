"""What adapts one stream by itself. Each file is an adapter; see `parts.Adapter`."""
