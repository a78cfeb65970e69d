"""What points of the face add to the frames. Each file is a use of landmarks; see `parts.Landmarks`."""
