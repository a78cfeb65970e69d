"""What makes one vector of all moments of a clip. Each file is a temporal model."""
