"""What makes logits of a clip. A file is a head; see `parts.Head`."""
