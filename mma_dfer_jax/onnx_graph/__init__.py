"""A model as an ONNX file: written from its own program, made smaller, described."""
