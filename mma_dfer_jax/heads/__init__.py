"""What makes the logits of a clip. Each file is a head."""
