"""What training lowers. A file is a loss; see `parts.Loss`."""
