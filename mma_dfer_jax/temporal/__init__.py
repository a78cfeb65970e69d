"""What makes one vector of all moments of a clip. A file is a temporal model; see `parts.Temporal`."""
