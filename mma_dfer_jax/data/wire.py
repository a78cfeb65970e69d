"""Records as bytes: tf.train.Example in the coding of protobuf, written and read without a Python number for each sample."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def varints(samples: np.ndarray) -> Iterator[bytes]:
  """Integers in the coding of protobuf: 7 bits a byte, the lowest first; negative ones have 64 bits."""
  for start in range(0, len(samples), 1 << 17):
    bits = samples[start : start + (1 << 17)].astype(np.int64).view(np.uint64)[:, None]
    rest = bits >> np.arange(0, 70, 7, dtype=np.uint64)
    follows = np.pad(rest[:, 1:] > 0, ((0, 0), (0, 1)))  # whether another byte does
    coded = (rest & np.uint64(127)).astype(np.uint8) | follows.astype(np.uint8) << 7
    yield coded[np.pad(follows[:, :-1], ((0, 0), (1, 0)), constant_values=True)].tobytes()


def field(number: int, *parts: bytes) -> list[bytes]:
  """A field of bytes or a message in the coding of protobuf."""
  size, head = sum(map(len, parts)), bytearray([number << 3 | 2])
  while size > 127:
    head.append(size & 127 | 128)
    size >>= 7
  return [bytes([*head, size]), *parts]


def varint(data: Any, at: int) -> tuple[int, int]:
  """A number of seven bits a byte, the lowest first, and where it ends; IndexError if that is not seen."""
  value = 0
  for place in range(10):  # of 64 bits
    value |= (data[at + place] & 127) << 7 * place
    if data[at + place] < 128:
      return value, at + place + 1
  raise IndexError(f"at byte {at} begins no number of 64 bits")


def contents(message: memoryview) -> Iterator[memoryview]:
  """What the fields of a message hold, in their order; all must be bytes or messages themselves."""
  at = 0
  while at < len(message):
    if message[at] & 7 != 2:
      raise ValueError(f"byte {at} begins no field of bytes")
    size, at = varint(message, at + 1)
    yield message[at : at + size]
    at += size
  if at > len(message):
    raise ValueError("the last field ends early")


def values(record: bytes) -> dict[str, memoryview]:
  """What a record holds by name, each still coded: of all that is large nothing is copied or looked at."""
  (features,) = contents(memoryview(record))
  found = {}
  for entry in contents(features):
    name, feature = contents(entry)
    found[str(name, "utf-8")] = next(contents(feature), memoryview(b""))
  return found


def strings(value: memoryview) -> list[memoryview]:
  """A value that is a list of bytes."""
  return list(contents(value))


def number_of_integers(value: memoryview) -> int:
  """How many integers a value lists."""
  return sum(int(np.count_nonzero(np.frombuffer(part, np.int8) >= 0)) for part in contents(value))


def integers(value: memoryview, kind: type[np.integer]) -> np.ndarray:
  """A value that is a list of integers, of which no bits are kept but those of `kind`: int16 or int32."""
  coded, found = np.frombuffer(next(contents(value), b""), np.uint8), [np.zeros(0, kind)]
  while len(coded):
    last = np.flatnonzero(coded[: 1 << 16] < 128)  # bytes of integers; what is made of them stays small
    first = np.concatenate([[0], last[:-1] + 1])
    part = (coded[first] & 127).astype(np.int64)
    for place in range(1, -(-8 * np.dtype(kind).itemsize // 7)):
      at = first + place
      part |= np.where(at <= last, coded[np.minimum(at, last)] & np.int64(127), 0) << 7 * place
    found.append(part.astype(kind))
    coded = coded[last[-1] + 1 :]
  return np.concatenate(found)
