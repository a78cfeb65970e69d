"""Whether a file is whole, format by format: what `ends` asks.

Each function takes the file's bytes and an `Ending`, which it fills; it raises CutShort or Damaged. Nothing is decoded.
"""
