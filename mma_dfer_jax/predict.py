"""Video files -> the probabilities of each emotion.

  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers clip.mp4 other.mov

Picture and sound become exactly what the model was trained on: if faces were cut out of its training clips, they are
cut out here in the same way, else the clips must be cut as those were. One JSON file for each clip.
"""

from collections.abc import Sequence
from pathlib import Path
import sys
from typing import Any

from absl import flags
import numpy as np
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.checkpoints import write_json
from mma_dfer_jax.data import media
from mma_dfer_jax.data.datasets import read_record
from mma_dfer_jax.data.faces import FaceFinder, finder_of
from mma_dfer_jax.data.pipeline import Preprocessing, eval_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.sharding import start_jax
from mma_dfer_jax.trained_model import TrainedModel, load_model

_MODEL = flags.DEFINE_string(
  "model", None, "Workdir of a run, or a folder that `convert` wrote.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder for the answers.", required=True)
_FACE_MODEL = flags.DEFINE_string("face_model", None, "YuNet's .onnx file; if not given, it is fetched once.")


def predict_clip(model: TrainedModel, file: str | Path, finder: FaceFinder | None = None) -> dict[str, Any]:
  """What the model says of one video file.

  Args:
    model: as `load_model` opens it.
    file: any video.
    finder: cuts the face out, as `finder_of` makes it from the model's recipe.
  Returns:
    clip, top (class name), probabilities by class name, frames, face_share (of the frames; None: not looked for),
    seconds_of_sound, sound (False: the model was given the constant that stands for a missing sound).
  Raises:
    MediaError: if the file is no video or damaged.
  """
  record = read_record(file, finder=finder) | {"label": 0, "clip_id": str(file).encode()}
  spec = Preprocessing(model.cfg.image_size, model.cfg.num_frames, model.cfg.audio_shape)
  example = eval_example(record, spec)
  logits = model(example["video"][None], example["spectrogram"][None])[0].astype(np.float64)
  probabilities = np.exp(logits - logits.max())
  probabilities /= probabilities.sum()
  return {
    "clip": str(file),
    "top": model.classes[int(logits.argmax())],
    "probabilities": dict(zip(model.classes, probabilities.tolist(), strict=True)),
    "frames": len(record["frames"]),
    "face_share": None if finder is None else record["face_share"],
    "sound": record["has_audio"],
    "seconds_of_sound": len(record["waveform"]) / record["sample_rate"] if record["has_audio"] else 0.0,
    "model": model.origin,
  }


def main(argv: Sequence[str]) -> int:
  files = argv[1:]
  names = [f"{Path(file).stem}.json" for file in files]
  if not files:
    raise UserError("name at least one video file")
  if repeated := sorted({name for name in names if names.count(name) > 1}):
    raise UserError(
      f"several clips would be answered in {', '.join(repeated)}; ask for them with different --out"
    )
  start_jax()
  model = load_model(_MODEL.value)
  finder = finder_of(model.recipe, Path(_FACE_MODEL.value) if _FACE_MODEL.value else None)
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  failed = 0
  for file, name in tqdm.tqdm(
    list(zip(files, names, strict=True)), "predict", unit="clip", disable=len(files) == 1
  ):
    try:
      answer = predict_clip(model, file, finder)
    except media.MediaError as error:
      failed += 1
      tqdm.tqdm.write(f"error: {error}", file=sys.stderr)
      continue
    write_json(out / name, answer)
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    heard = "" if answer["sound"] else " (without sound)"
    tqdm.tqdm.write(f"{file}{heard}: " + ", ".join(f"{label} {100 * p:.1f} %" for label, p in ranked[:3]))
  if failed:
    print(f"{failed} of {len(files)} clips could not be read", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  cli.run(main, takes_files=True)
