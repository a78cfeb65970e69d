"""What training minimises. Each file is a loss; see `parts.Loss`."""
