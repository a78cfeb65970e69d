"""What adapts one stream by itself. A file is an adapter; see `parts.Adapter`."""
