"""Which layers the streams' summaries are made of. Each file is a layer pool; see `parts.LayerPool`."""
