"""What a conversion says for itself: counts, a digest of every tensor, and the largest difference of a logit."""

from collections.abc import Callable, Collection, Mapping
import hashlib
import math
from pathlib import Path
from typing import Any
import zipfile

import numpy as np

from mma_dfer_jax.config import PAPER_TUNABLE
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.torch_names import name_table, unused_shapes
from mma_dfer_jax.train_state import Tunable
from mma_dfer_jax.weights import Tensor


def digest(array: np.ndarray) -> str:
  """First 16 digits of the sha256 of the values, in C order, little-endian."""
  return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()[:16]


def describe(cfg: ModelConfig, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> dict[str, Any]:
  """Counts of tensors and elements per part, tunable and frozen, and every tensor's shape, type and digest.

  Args:
    cfg: sizes of the model.
    tensors: by the authors' names.
    digests: of the same tensors.
  """
  is_tunable = Tunable(PAPER_TUNABLE)
  parts: dict[str, list[str]] = {}
  groups: dict[str, list[str]] = {"tunable": [], "frozen": [], "unused": []}
  for row in name_table(cfg):
    path = tuple(row.path.split("/"))
    parts.setdefault(path[0], []).extend(row.torch_names)
    groups["tunable" if is_tunable(path, None) else "frozen"] += row.torch_names
  groups["unused"] = parts["unused"] = [name for name in unused_shapes(cfg) if name in tensors]
  # The original counts norm2 among what it trains, and the heads among what it does not.
  heads = [name for name in groups["unused"] if ".head." in name]
  norms = [name for name in groups["unused"] if name not in heads]

  def count(names: Collection[str]) -> dict[str, int]:
    return {"tensors": len(names), "elements": sum(math.prod(tensors[name].shape) for name in names)}

  return {
    "parts": {part: count(names) for part, names in parts.items()},
    **{group: count(names) for group, names in groups.items()},
    "all": count(tensors.keys()),
    "as_the_original_counts": {
      "trained": count(groups["tunable"] + norms),
      "frozen": count(groups["frozen"] + heads),
    },
    "digest": hashlib.sha256(
      "".join(sorted(f"{n} {d} {tensors[n].dtype}" for n, d in digests.items())).encode()
    ).hexdigest()[:16],
    "tensors": {
      name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "sha256": digests[name]}
      for name, tensor in tensors.items()
    },
  }


def report_text(report: Mapping[str, Any]) -> str:
  """The report for people: every tensor first, the verdict last."""
  lines = [
    f"{about['sha256']}  {about['dtype']:<9}{'x'.join(map(str, about['shape'])) or '()':<18}{name}"
    for name, about in report["tensors"].items()
  ]
  lines += ["", f"{'part':<18}{'tensors':>9}{'elements':>15}"]
  for part in (*report["parts"], "all"):
    counts = report["parts"].get(part, report["all"])
    lines.append(f"{part:<18}{counts['tensors']:>9}{counts['elements']:>15,}")
  tunable, frozen, unused = report["tunable"], report["frozen"], report["unused"]
  sizes, original = report["model"], report["as_the_original_counts"]
  lines += [
    "",
    f"tunable: {tunable['tensors']} tensors, {tunable['elements']:,} elements; frozen: {frozen['tensors']} tensors, "
    f"{frozen['elements']:,} elements",
    f"never used, kept for writing back: {unused['tensors']} tensors, {unused['elements']:,} elements; with those, as the "
    f"original counts: {original['trained']['tensors']} trained, {original['trained']['elements']:,} elements, and "
    f"{original['frozen']['tensors']} frozen, {original['frozen']['elements']:,} elements",
    f"sizes: {sizes['image_size']} px, {sizes['num_frames']} frames, {sizes['audio_shape'][0]}x{sizes['audio_shape'][1]} "
    f"spectrogram, width {sizes['width']}, {sizes['depth']} blocks, {sizes['heads']} heads",
    *(f"assumed: {name} = {reason}" for name, reason in report["assumed"].items()),
    f"classes: {', '.join(report['classes'])}; {report['class_order']}",
    f"source: {', '.join(f'{key} {value}' for key, value in report['source'].items())}",
    f"read back from the disk: {report['read_back']}; digest of all: {report['digest']}",
  ]
  if verify := report.get("verify"):
    lines.append(
      f"verified with {verify['file']}: {verify['clips']} clips, largest difference of a logit {verify['largest_difference']:.2e} "
      f"(of logits up to {verify['largest_logit']:.3g})"
    )
  return "\n".join(lines)


def read_verification(path: Path, cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Inputs and the logits that they must give.

  Args:
    path: .npz with `video` (B, T, H, W, 3) and `spectrogram` (B, F, K), or as the original is fed, `images`
      (B, T, 3, H, W) in [0, 1] and `audio` (B, 1, F, K); and `logits` (B, C).
    cfg: sizes of the model.
  Returns:
    video, spectrogram, logits.
  Raises:
    UserError: with all that is missing or of the wrong shape.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {
        name: file[name]
        for name in file.files
        if name in ("video", "images", "spectrogram", "audio", "logits")
      }
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"--verify={path} is no .npz file of numbers: {error}") from error
  if "images" in arrays and arrays["images"].ndim == 5:
    arrays["video"] = arrays.pop("images").transpose(0, 1, 3, 4, 2)
  if "audio" in arrays and arrays["audio"].ndim == 4:
    arrays["spectrogram"] = arrays.pop("audio")[:, 0]
  clips = len(arrays["logits"]) if arrays.get("logits", np.zeros(())).ndim else 0
  wanted = {
    "video": (clips, cfg.num_frames, cfg.image_size, cfg.image_size, 3),
    "spectrogram": (clips, *cfg.audio_shape),
    "logits": (clips, cfg.num_classes),
  }
  problems = [
    f"{name}: {arrays[name].shape if name in arrays else 'missing'}, not {shape}"
    for name, shape in wanted.items()
    if name not in arrays or arrays[name].shape != shape or not clips
  ]
  if problems:
    raise listed(f"--verify={path} does not fit the model", problems, "`images` (B, T, 3, H, W) and `audio` (B, 1, F, K) fit as well")  # fmt: skip
  return arrays["video"], arrays["spectrogram"], arrays["logits"]


def compare_logits(
  model: Callable[..., np.ndarray],
  video: np.ndarray,
  spectrogram: np.ndarray,
  logits: np.ndarray,
  tolerance: float,
) -> dict[str, Any]:
  """The largest difference of a logit from what was expected.

  Raises:
    UserError: if it is above the tolerance, or no number.
  """
  try:
    found = np.concatenate([model(video[i : i + 2], spectrogram[i : i + 2]) for i in range(0, len(video), 2)])
  except ValueError as error:
    raise UserError(f"the inputs of --verify cannot be used: {error}") from error
  largest = float(np.abs(found - logits).max())
  if not largest <= tolerance:
    raise UserError(
      f"the logits differ from those expected by up to {largest:.3g}, more than --tolerance={tolerance:g}; the inputs, the "
      "class count or --heads may be those of another model"
    )
  return {"clips": len(video), "largest_difference": largest, "largest_logit": float(np.abs(logits).max())}
