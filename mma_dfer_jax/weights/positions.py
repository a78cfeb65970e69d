"""Resizes a table of position embeddings to another grid of patches."""

from jaxtyping import Float
import numpy as np


def resize_positions(
  table: Float[np.ndarray, "1 N D"], grid: tuple[int, int], target: tuple[int, int]
) -> Float[np.ndarray, "1 M D"]:
  """A grid's table for a target grid; the class token's row stays, and the same grid keeps every bit.

  Args:
    table: (1, 1 + grid[0] * grid[1], D), patches in row-major order.
  Source: `interpolate_pos_embed` of MAE: torch's bicubic interpolation without antialiasing or aligned corners.
  """
  if grid == target:
    return table
  rows, columns = (cubic_matrix(n, m) for n, m in zip(grid, target, strict=True))
  patches = table[0, 1:].reshape(*grid, -1).astype(np.float64)
  resized = np.einsum("ai,bj,ijd->abd", rows, columns, patches, optimize=True)
  return np.concatenate([table[:, :1], resized.reshape(1, -1, table.shape[-1]).astype(table.dtype)], axis=1)


def cubic_matrix(size: int, target: int) -> Float[np.ndarray, "M N"]:
  """Weights (target, size) of cubic interpolation along one axis, a = -0.75, edges repeated.

  Source: torch's compiled `upsample_bicubic2d`, whose coefficients come from float32 with fused multiply-adds; exact
  ones are 5e-6 off (and so are OpenCV's, while jax.image takes a = -0.5).
  """
  one, a = np.float32(1), np.float32(-0.75)

  def fma(x, y, z):
    return (np.float64(x) * y + z).astype(np.float32)  # the product of two float32 is exact in float64

  def inner(d):  # taps less than 1 away
    return fma(fma(a + 2, d, -(a + 3)) * d, d, 1)

  def outer(d):  # taps 1 to 2 away
    return fma(fma(fma(a, d, -5 * a), d, 8 * a), d, -4 * a)

  centres = fma(np.float32(size) / np.float32(target), np.arange(target) + 0.5, -0.5)
  first = np.floor(centres)
  t = centres - first
  matrix = np.zeros((target, size))
  for tap, weights in enumerate((outer(t + one), inner(t), inner(one - t), outer(one - t + one))):
    columns = np.clip(first.astype(int) - 1 + tap, 0, size - 1)
    np.add.at(matrix, (np.arange(target), columns), weights)
  return matrix
