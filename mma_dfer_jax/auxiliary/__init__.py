"""What else is learned beside the classes. Each file is an auxiliary task; see `parts.Auxiliary`."""
