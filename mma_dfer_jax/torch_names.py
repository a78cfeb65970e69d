"""Names and layouts: the authors' PyTorch state dict <-> our parameters, tensor by tensor.

Our parameters are a flat dict from "/"-joined paths (`fusion/3/image_down/kernel`) to arrays; theirs is a state
dict without the `module.` prefix. The table below is the whole translation, in both directions.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import dataclasses

import numpy as np

from mma_dfer_jax.errors import UserError, shown
from mma_dfer_jax.model import ModelConfig

# How a layout changes: PyTorch keeps linear weights as (out, in) and convolutions as (out, in, height, width).
TO_JAX: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
  "keep": lambda tensors: tensors[0],
  "linear": lambda tensors: tensors[0].T,
  "conv": lambda tensors: tensors[0].transpose(2, 3, 1, 0),
  "concat": lambda tensors: np.concatenate(tensors, axis=0).T,  # to_q (q), to_kv (k, v) -> one qkv
  "stack": np.stack,  # one tensor per stage
}
TO_TORCH: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
  "keep": lambda array: [array],
  "linear": lambda array: [array.T],
  "conv": lambda array: [array.transpose(3, 2, 0, 1)],
  "concat": lambda array: np.split(array.T, [array.shape[1] // 3]),
  "stack": list,
}


class CheckpointMismatchError(UserError):
  """A checkpoint that is not the model asked for; says all that is missing, unexpected and of another shape."""

  def __init__(self, title: str, missing: list[str], unexpected: list[str], wrong_shape: list[str]):
    self.missing, self.unexpected, self.wrong_shape = missing, unexpected, wrong_shape
    lists = [("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong_shape)]
    super().__init__("\n".join(
      [f"{title}:"]
      + [f"  {what} ({len(names)}): {', '.join(map(shown, names)) or 'none'}" for what, names in lists]
    ))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our parameters: its path, the tensors it is made of in the authors' file, and how."""

  path: str
  torch_names: tuple[str, ...]
  layout: str


def name_table(cfg: ModelConfig) -> list[Row]:
  """Every parameter of our model with its origin; the order is that of our model's figure."""
  rows = []

  def row(path: str, *torch_names: str, layout: str = "keep"):
    rows.append(Row(path, torch_names, layout))

  def linear(path: str, name: str, layout: str = "linear"):
    row(f"{path}/kernel", f"{name}.weight", layout=layout)
    row(f"{path}/bias", f"{name}.bias")

  def norm(path: str, name: str):
    row(f"{path}/scale", f"{name}.weight")
    row(f"{path}/bias", f"{name}.bias")

  for ours, theirs in (("image", "image_encoder"), ("audio", "audio_model")):
    encoder = f"{ours}_encoder"
    row(f"{encoder}/cls_token", f"{theirs}.cls_token")
    row(f"{encoder}/pos_embed", f"{theirs}.pos_embed")
    linear(f"{encoder}/patch_embed", f"{theirs}.patch_embed.proj", layout="conv")
    for i in range(cfg.depth):
      for layer in ("norm1", "norm2"):
        norm(f"{encoder}/blocks/{i}/{layer}", f"{theirs}.blocks.{i}.{layer}")
      for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"):
        linear(f"{encoder}/blocks/{i}/{layer}", f"{theirs}.blocks.{i}.{layer.replace('/', '.')}")
    norm(f"{encoder}/norm", f"{theirs}.norm")
    row(f"{ours}_prompts/prompt_tokens", f"{theirs}.learnable_prompts_init")
    updates = [f"{theirs}.learnable_prompts_progr.{stage}" for stage in range(cfg.num_stages)]
    row(f"{ours}_prompts/update_tokens", *updates, layout="stack")

  for i in range(cfg.depth):
    linear(f"fusion/{i}/image_down", f"image_encoder.temporal_pre.{i}")
    norm(f"fusion/{i}/image_norm", f"image_encoder.temporal_pre_norm.{i}")
    # The audio side's compression lives in the image encoder of the original.
    linear(f"fusion/{i}/audio_down", f"image_encoder.audio_proj_pre.{i}.0")
    norm(f"fusion/{i}/audio_norm", f"image_encoder.audio_proj_pre.{i}.1")
    for ours, theirs in (("image", "image_encoder"), ("audio", "audio_model")):
      linear(f"fusion/{i}/{ours}_up", f"{theirs}.temporal_att_post.{i}.0")
      row(f"fusion/{i}/{ours}_gate", f"{theirs}.all_gate.{i}")

  linear("joint_adaptation/proj", "vision_proj")
  row("temporal/cls_token", "temporal_net.cls_token")
  row("temporal/pos_embed", "temporal_net.pos_embedding")
  for i in range(cfg.temporal_depth):
    attention, feed_forward = (f"temporal_net.temporal_transformer.layers.{i}.{k}.fn" for k in (0, 1))
    norm(f"temporal/blocks/{i}/norm1", f"{attention}.norm")
    qkv = (f"{attention}.fn.to_q.weight", f"{attention}.fn.to_kv.weight")
    row(f"temporal/blocks/{i}/attn/qkv/kernel", *qkv, layout="concat")
    linear(f"temporal/blocks/{i}/attn/proj", f"{attention}.fn.to_out.0")
    norm(f"temporal/blocks/{i}/norm2", f"{feed_forward}.norm")
    linear(f"temporal/blocks/{i}/mlp/fc1", f"{feed_forward}.fn.net.0")
    linear(f"temporal/blocks/{i}/mlp/fc2", f"{feed_forward}.fn.net.3")
  linear("classifier", "our_classifier")
  return rows


def unused_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Tensors of the authors' file that never take part: both encoders' heads and the temporal net's `norm2`."""
  shapes: dict[str, tuple[int, ...]] = {}
  # Outputs of the heads: the original hands timm's classes over as the number of heads for frames, 1000 for sound.
  for encoder, outputs in (("image_encoder", 12), ("audio_model", 1000)):
    shapes |= {f"{encoder}.head.weight": (outputs, cfg.width), f"{encoder}.head.bias": (outputs,)}
  for i in range(cfg.temporal_depth):
    for k in (0, 1):
      norm2 = f"temporal_net.temporal_transformer.layers.{i}.{k}.fn.norm2"
      shapes |= {f"{norm2}.{leaf}": (cfg.temporal_width,) for leaf in ("weight", "bias")}
  return shapes


def used_shapes(cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  """The shape of each tensor that takes part, by the authors' name, from those of our parameters, by path."""
  # One zero, seen in every shape: costs no memory.
  zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
  return {
    name: part.shape
    for row in name_table(cfg)
    for name, part in zip(row.torch_names, TO_TORCH[row.layout](zeros[row.path]), strict=True)
  }


def check_fit(
  title: str,
  found: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  allowed: Collection[str] = (),
) -> None:
  """Compares names and shapes.

  Args:
    title: first line of the message.
    found: shapes by name of a file.
    wanted: what must be there.
    allowed: names that may be there as well.
  Raises:
    CheckpointMismatchError: with everything missing, unexpected or of the wrong shape.
  """
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys() - set(allowed))
  wrong_shape = [
    f"{name} {found[name]}, not {shape}"
    for name, shape in wanted.items()
    if found.get(name, shape) != tuple(shape)
  ]
  if missing or unexpected or wrong_shape:
    raise CheckpointMismatchError(title, missing, unexpected, wrong_shape)


def from_torch(tensors: Mapping[str, np.ndarray], rows: Iterable[Row]) -> dict[str, np.ndarray]:
  """Our parameters of these rows, by path, in the dtype of the source; the shapes have been checked."""
  return {
    row.path: np.ascontiguousarray(TO_JAX[row.layout]([tensors[name] for name in row.torch_names]))
    for row in rows
  }


def to_torch(params: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, np.ndarray]:
  """The authors' tensors, by name without prefix, from ours (or from gradients or moments of ours).

  Paths that `params` lacks are left out, so that a part of the model can be named as well.
  """
  tensors: dict[str, np.ndarray] = {}
  for row in name_table(cfg):
    if row.path in params:
      parts = TO_TORCH[row.layout](np.asarray(params[row.path]))
      tensors |= {n: np.ascontiguousarray(p) for n, p in zip(row.torch_names, parts, strict=True)}
  return tensors
