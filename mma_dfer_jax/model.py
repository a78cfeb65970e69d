"""MMA-DFER (arXiv 2404.09010): read `MmaDfer.__call__` beside the paper's overview figure.

Letters in shapes: see `parts.py`.
"""

from collections.abc import Mapping
import copy
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.layers import REMAT, TorchLinear, at_places, drop_path, of_each_block


class Slot(NamedTuple):
  """A place for a part: the folder that it is chosen from, and the paths of its parameters."""

  kind: str
  places: tuple[str, ...]


SLOTS = {
  "image": Slot("encoders", ("image_encoder",)),
  "audio": Slot("encoders", ("audio_encoder",)),
  "prompts": Slot("adapters", ("image_prompts", "audio_prompts")),
  "fusion": Slot("fusion", (r"fusion/\d+",)),
  "layer_pool": Slot("layer_pools", ("layer_pool",)),
  "frame_mask": Slot("frame_masks", ("frame_mask",)),
  "landmarks": Slot("landmarks", ("landmark_graph",)),
  "temporal": Slot("temporal", ("temporal",)),
  "head": Slot("heads", ("classifier",)),
  "auxiliary": Slot("auxiliary", ("cascade",)),
}
PAPER = {"image": "mae", "audio": "mae", "prompts": "prompts", "fusion": "bottleneck", "layer_pool": "last",
         "frame_mask": "none", "landmarks": "none", "temporal": "transformer", "head": "linear",
         "auxiliary": "none"}  # the part in each slot  # fmt: skip
AUTHORS = (("proj", "vision_proj", "linear"),)  # of `joint_adaptation`, as the tables of parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The parts of a model, each with its sizes; `read_model` makes one from the fields of a config.

  Construction raises UserError with everything that does not fit together.
  """

  num_classes: int
  inputs: Inputs
  image: Any  # Config of an encoder
  audio: Any
  prompts: Any  # of an adapter; each stream gets one
  fusion: Any
  layer_pool: Any
  frame_mask: Any
  landmarks: Any
  temporal: Any
  head: Any
  auxiliary: Any

  def __post_init__(self):
    problems = []
    if type(self.num_classes) is not int or self.num_classes < 1:
      problems.append(f"num_classes={self.num_classes!r} must be a positive whole number")
    depths = self.image.depth, self.audio.depth
    if not any(depths):
      problems.append("model.image and model.audio are both none: choose an encoder for at least one")
    else:
      if self.image.takes_prompts or self.audio.takes_prompts:
        problems += self.prompts.problems_with(self.layers)
      elif self.prompts.count(self.layers):
        problems.append("model.prompts: no encoder of this model takes prompts; choose none")
      problems += self.fusion.problems_with(self.layers)
      problems += self.layer_pool.problems_with(*depths)
      problems += self.frame_mask.problems_with(self.image, self.temporal, self.inputs, self.layers)
    for stream in ("image", "audio"):
      problems += getattr(self, stream).problems_with(stream, self.inputs)
    of_faces = {"landmarks": self.landmarks.POINTS > 0, "auxiliary": self.auxiliary.FACES}
    problems += [f"model.{slot}={parts.place_of(getattr(self, slot)).partition('/')[2]} is about faces in pictures, but model.image is "
                 "none: choose none" for slot, looks in of_faces.items() if looks and not self.image.depth]  # fmt: skip
    if self.inputs.points not in (0, self.landmarks.POINTS):
      problems.append(
        f"inputs.points={self.inputs.points}, but model.landmarks takes {self.landmarks.POINTS}"
      )
    object.__setattr__(self, "inputs", dataclasses.replace(self.inputs, points=self.landmarks.POINTS))
    if problems:
      raise listed("this model cannot be built", problems)
    object.__setattr__(self, "frame_mask", self.frame_mask.settled(self.inputs.num_frames, self.layers))

  @property
  def wants_faces(self) -> bool:
    """Whether training needs boxes and points of faces."""
    return self.landmarks.POINTS > 0 or self.auxiliary.FACES

  @property
  def layers(self) -> int:
    """Layers of adapters and fusions, each of as many blocks of each encoder: 12 blocks beside 16 are 4 layers of 3 and 4."""
    return math.gcd(self.image.depth, self.audio.depth)

  def tunable(self) -> dict[str, list[str]]:
    """Patterns of whole parameter paths that are 🔥 by default, with the field that each one comes from."""
    joint = {"joint_adaptation": ["joint_adaptation/.*"]} if self.temporal.width else {}
    return joint | {
      f"model.{name}.tunable {pattern!r}": [f"{place}/(?:{pattern})" for place in slot.places]
      for name, slot in SLOTS.items()
      for pattern in getattr(self, name).tunable
    }

  def to_fields(self) -> dict[str, Any]:
    """Fields for model.json; `read_model` reads them back."""
    of_parts = {name: parts.fields_of(getattr(self, name)) for name in SLOTS}
    return {"num_classes": self.num_classes, "inputs": self.inputs.to_fields(), **of_parts}


def read_model(fields: Mapping[str, Any]) -> ModelConfig:
  """The model that a config or a model.json describes: num_classes, inputs, and a part with its name for each slot.

  Raises:
    UserError: with everything that is wrong with any of the parts.
  """
  values, problems, known = dict(fields), [], ("num_classes", "inputs", *SLOTS)
  if wrong := sorted(values.keys() ^ set(known)):
    raise UserError(f"a model has the fields {', '.join(known)}; missing or unknown: {', '.join(wrong)}")
  try:
    values["inputs"] = Inputs(**parts.with_tuples(values["inputs"]))
  except (UserError, TypeError, AttributeError) as error:  # a stranger's model.json may hold anything
    problems.append(f"inputs: {error}")
  for name, slot in SLOTS.items():
    try:
      values[name] = parts.read(slot.kind, values[name])
    except UserError as error:
      problems.append(f"model.{name}: {error}")
  if problems:
    raise listed("this model cannot be built", problems)
  return ModelConfig(**values)


def paper(num_classes: int = 7, **sizes: Any) -> ModelConfig:
  """The paper's model: ViT-B/16 encoders, 224 px; keyword arguments are those of `Inputs`."""
  fields = {name: {"name": part} for name, part in PAPER.items()}
  return read_model({"num_classes": num_classes, "inputs": sizes, **fields})


class JointAdaptation(nnx.Module):
  """Each moment's image summary plus the audio summary, projected to width W (if not 0). Source: original `vision_proj`."""

  def __init__(self, image: parts.Encoder, audio: parts.Encoder, width: int, *, rngs: nnx.Rngs):
    joint = image.width or audio.width
    # Encoders of two widths: the sum needs a projection that the paper does not have.
    same = audio.width in (0, joint)
    self.audio_proj = None if same else TorchLinear(audio.width, joint, rngs=parts.own(rngs, "audio_proj"))
    self.proj = TorchLinear(joint, width, rngs=parts.own(rngs, "proj")) if width else None
    self.width = width or joint

  def __call__(
    self, image: Float[Array, "B S D"] | None, audio: Float[Array, "B 1 E"] | None
  ) -> Float[Array, "B S W"]:
    if self.audio_proj is not None and audio is not None:
      audio = self.audio_proj(audio)
    joint: Any = image if audio is None else audio if image is None else image + audio
    return joint if self.proj is None else self.proj(joint)


def adapted_layer(image_blocks, audio_blocks, fusion, image, audio):
  """One layer: blocks of each encoder, each with its drop path factors, then the fusion."""
  for block, scale in image_blocks:
    image = block(image, scale)  # ❄
  for block, scale in audio_blocks:
    audio = block(audio, scale)  # ❄
  return fusion(image, audio)  # 🔥


def summary_of(encoder: parts.Encoder, tokens: Array | None, every_layer: bool) -> Array | None:
  """A stream's summary, of every layer or of the last alone."""
  if (
    every_layer and tokens is not None
  ):  # all tokens, normalised a dozen times, would be kept for the backward pass
    tokens = tokens[:, : getattr(encoder, "summarised", None)]
  return encoder.summary(tokens)  # type: ignore[arg-type] # an absent stream takes None and gives None


class Dropped(NamedTuple):
  """What one training step drops: factors of drop path of both encoders' blocks, and what the auxiliary task's dropout goes by."""

  image: Float[Array, "L r BV"] | None = None
  audio: Float[Array, "J s B"] | None = None
  auxiliary: Float[Array, "N B"] | None = None


NOTHING = Dropped()


class MmaDfer(nnx.Module):
  """MultiModal Adaptation for Dynamic Facial Expression Recognition.

  Two frozen encoders run side by side; after each layer a fusion exchanges information between them; prompts adapt each
  of them; a temporal model reads the joint features of all moments. Each part draws fresh parameters from its own random
  stream, so that two ablations start with the same weights in all other parts.
  """

  FLOAT32 = ("classifier", "frame_mask")  # float32 in any precision, and so are the logits

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    draws = functools.partial(parts.own, rngs)

    def adapter(encoder: parts.Encoder, takes: bool, place: str) -> parts.Adapter:
      chosen = cfg.prompts if takes else parts.read("adapters", {"name": "none"})
      return chosen.build(encoder.width, cfg.layers, rngs=draws(place))

    prompts, layers = cfg.prompts.count(cfg.layers), cfg.layers
    image = cfg.image.build("image", cfg.inputs, prompts, rngs=draws("image_encoder"))
    audio = cfg.audio.build("audio", cfg.inputs, prompts, rngs=draws("audio_encoder"))
    self.image_encoder, self.audio_encoder = image, audio
    self.frame_mask = cfg.frame_mask.build(image.views, rngs=draws("frame_mask"))
    self.image_prompts = adapter(image, cfg.image.takes_prompts, "image_prompts")
    self.audio_prompts = adapter(audio, cfg.audio.takes_prompts, "audio_prompts")
    self.fusion = nnx.List(
      cfg.fusion.build(self._image_encoder(i), audio, i, layers, rngs=draws(f"fusion/{i}"))
      for i in range(layers)
    )
    self.joint_adaptation = JointAdaptation(image, audio, cfg.temporal.width, rngs=draws("joint_adaptation"))
    width, moments = self.joint_adaptation.width, image.moments or audio.moments
    self.layer_pool = cfg.layer_pool.build(image.width, audio.width, layers, rngs=draws("layer_pool"))
    self.landmark_graph = cfg.landmarks.build(
      width, moments, cfg.inputs.num_frames, rngs=draws("landmark_graph")
    )
    self.temporal = cfg.temporal.build(moments, rngs=draws("temporal"))
    self.classifier = cfg.head.build(width, cfg.num_classes, rngs=draws("classifier"))
    self.cascade = cfg.auxiliary.build(width, cfg.inputs.num_frames, cfg.num_classes, rngs=draws("cascade"))
    self.cfg = cfg

  def __repr__(self) -> str:
    """Five lines; Flax would print every parameter, thousands of them."""
    tunable = "|".join(pattern for of_field in self.cfg.tunable().values() for pattern in of_field)
    sizes = {"/".join(map(str, path)): variable.size for path, variable in nnx.to_flat_state(nnx.state(self))}
    trained = sum(size for path, size in sizes.items() if re.fullmatch(tunable, path))
    chosen = ", ".join(f"{name} {parts.place_of(getattr(self.cfg, name))}" for name in SLOTS)
    return (f"MmaDfer\n  parts: {chosen}\n  takes: {self.cfg.inputs}\n  classes: {self.cfg.num_classes}\n"
            f"  parameters: {sum(sizes.values()):,}, of which {trained:,} tunable by its parts")  # fmt: skip

  __str__ = __repr__

  def __call__(
    self, video: Float[Array, "B T H W 3"] | UInt8[Array, "B T H W 3"], spectrogram: Float[Array, "B F K"],
    landmarks: Float[Array, "B T p 3"] | None = None, *, dropped: Dropped = NOTHING, remat: str = "none",
  ) -> parts.Outputs:  # fmt: skip
    """Logits (B, C) of a batch of clips, and what the parts say besides.

    Args:
      video: (B, T, H, W, 3) RGB, uint8 or float in [0, 1]; an encoder normalises as it was pretrained.
      spectrogram: (B, F, K) float, log-mel energies normalised as AudioMAE's, 10 ms per row.
      landmarks: (B, T, p, 3), points of the face as `parts.Landmarks` takes them; None if the model takes none.
      dropped: what `draw_drop_path` drew, in training; nothing in evaluation.
      remat: what the forward pass keeps for the backward pass, one of `layers.REMAT`; it changes no number.
    """
    return self.answer(
      self.features(video, spectrogram, landmarks, dropped=dropped, remat=remat), dropped.auxiliary
    )

  def answer(self, features: parts.Features, drawn: Float[Array, "N B"] | None = None) -> parts.Outputs:
    """Logits (B, C) of features, and what the parts say besides."""
    outputs = self.cascade(self.classifier(features.clip), features.moments, drawn)  # 🔥
    return outputs._replace(extra={**features.extra, **outputs.extra})

  def features(
    self, video: Float[Array, "B T H W 3"] | UInt8[Array, "B T H W 3"], spectrogram: Float[Array, "B F K"],
    landmarks: Float[Array, "B T p 3"] | None = None, *, dropped: Dropped = NOTHING, remat: str = "none",
  ) -> parts.Features:  # fmt: skip
    """What the classifier's answer is made of; arguments as for a call."""
    if (video.shape[1:], spectrogram.shape[1:]) != (self.cfg.inputs.video_shape, self.cfg.inputs.audio_shape):
      raise ValueError(f"the model takes {self.cfg.inputs}, not {video.shape} and {spectrogram.shape}")
    image = self.image_encoder.embed(video, self.image_prompts.tokens)  # (B·V, N, D)
    audio = self.audio_encoder.embed(spectrogram, self.audio_prompts.tokens)  # (B, M, E)
    image_blocks = self._by_layer(self.image_encoder, dropped.image)
    audio_blocks = self._by_layer(self.audio_encoder, dropped.audio)
    layer = REMAT[remat](adapted_layer)  # modules are its arguments, so that equal layers are traced once
    summaries: tuple[list, list] = ([], [])  # after each layer that the layer pool reads
    every = self.cfg.layer_pool.EVERY_LAYER
    places: tuple[Array, ...] = ()  # of the frames that the mask keeps, if not all
    for number, fusion in enumerate(self.fusion):
      image, audio = layer(image_blocks[number], audio_blocks[number], fusion, image, audio)
      image = self.image_prompts.update(image, number)  # 🔥
      audio = self.audio_prompts.update(audio, number)  # 🔥
      if every or number + 1 == len(self.fusion):
        summaries[0].append(summary_of(self._image_encoder(number), image, every))
        summaries[1].append(summary_of(self.audio_encoder, audio, every))
      if number + 1 == self.frame_mask.after:
        places = (self.frame_mask.choose(self.image_encoder.summary(image)),)
        image, fewer_dropped = self._fewer_frames(*places, image, dropped.image)
        image_blocks = self._by_layer(self.image_encoder, fewer_dropped)
        summaries[0][:] = [at_places(summary, *places) for summary in summaries[0]]
        landmarks = landmarks if landmarks is None else at_places(landmarks, *places)
    image, audio, said = self.layer_pool(*summaries)  # 🔥
    joint = self.joint_adaptation(image, audio)  # 🔥 (B, S, W)
    joint = self.landmark_graph(joint, landmarks)  # 🔥
    joint, bias, of_frames = self.frame_mask(image, joint, *places)  # 🔥
    temporal = functools.partial(self.temporal, joint, bias, *places)  # 🔥
    clip, moments = self.landmark_graph.beside(temporal, landmarks)  # 🔥 (B, W), (B, S, W)
    return parts.Features(image, audio, joint, clip, moments, {**said, **of_frames})

  def _image_encoder(self, layer: int) -> parts.Encoder:
    """The encoder of frames as a layer sees it, perhaps with fewer frames of each clip."""
    if not 0 < self.frame_mask.after <= layer:
      return self.image_encoder
    fewer = copy.copy(self.image_encoder)
    vars(fewer).update(
      dict.fromkeys(("views", "moments"), self.frame_mask.keep)
    )  # Flax would refuse, inside of a jit
    return fewer

  def _fewer_frames(
    self, places: Int[Array, "B k"], image: Float[Array, "BT N D"], dropped: Array | None
  ) -> tuple[Float[Array, "Bk N D"], Array | None]:
    """Tokens and drop path factors of the frames at these places of each clip."""
    frames = self.image_encoder.views
    image = at_places(image.reshape(-1, frames, *image.shape[1:]), places)
    image = image.reshape(-1, *image.shape[2:])
    if dropped is None:
      return image, None
    of_clips = dropped.reshape(*dropped.shape[:2], -1, frames).transpose(2, 3, 0, 1)  # (B, T, L, 2)
    kept = at_places(of_clips, places).transpose(2, 3, 0, 1)
    return image, kept.reshape(*dropped.shape[:2], -1)

  def draw_drop_path(self, rngs: nnx.Rngs, clips: int) -> Dropped:
    """Draws, for one training step, which branches of which blocks are dropped for which sequences, and what dropout goes by."""

    def draw(key: Array, encoder: parts.Encoder):
      rates = encoder.drop_path_rates
      return drop_path(key, rates, clips * encoder.views, encoder.branches) if any(rates) else None

    of_image, of_audio = (
      draw(rngs.drop_path(), encoder) for encoder in (self.image_encoder, self.audio_encoder)
    )
    return Dropped(of_image, of_audio, self.cascade.draw(rngs.drop_path(), clips))

  def _by_layer(self, encoder: parts.Encoder, dropped: Array | None) -> list[list]:
    """(block, its drop path factors) of each layer; 24 blocks in 12 layers are two each."""
    pairs = list(zip(encoder.blocks, of_each_block(dropped, len(encoder.blocks)), strict=True))
    each = len(pairs) // len(self.fusion)
    return [pairs[i * each : (i + 1) * each] for i in range(len(self.fusion))]
