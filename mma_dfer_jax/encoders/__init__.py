"""What reads one stream: frames or sound. A file is an encoder; see `parts.Encoder`."""
