"""What reads one stream: frames or sound. Each file is an encoder; see `parts.Encoder`."""
