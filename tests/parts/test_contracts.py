"""What every part promises, asked of every file of every kind: a new part is tested here by being there."""

import ast
from collections import Counter
import dataclasses
import functools
import io
import json
import math
from pathlib import Path
import tokenize

from flax import nnx
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from torch_files import from_torch

from mma_dfer_jax import parts
from mma_dfer_jax.engines.engine import About
from mma_dfer_jax.engines.jax import JaxEngine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import PAPER, SLOTS, MmaDfer, ModelConfig, read_model
from mma_dfer_jax.onnx_export import graph_of
from mma_dfer_jax.onnx_graph.writer import to_onnx
from mma_dfer_jax.parameters import abstract_model, cast, flat_params, split_tunable, tunable_patterns
from mma_dfer_jax.training.steps import in_float32
from mma_dfer_jax.weights import names

PACKAGE = Path(parts.__file__).parent
# Small values for fields that parts usually have; a field of another name keeps its default.
SMALL = {
  "width": 16,
  "depth": 2,
  "heads": 2,
  "head_dim": 8,
  "mlp_dim": 32,
  "layers_per_stage": 1,
  "region": (1, 2, 1),
}
# The paper's model, and each other part in its place.
IN_SLOTS = [("image", "mae")]
IN_SLOTS += [(slot, name) for slot in SLOTS for name in parts.names(SLOTS[slot].kind) if name != PAPER[slot]]
IN_SLOTS.remove(("audio", "lgi"))  # reads frames only
EVERY_PART = [(kind, name) for kind in parts.KINDS for name in parts.names(kind)]


def fields(kind: str, name: str) -> dict:
  known = {field.name for field in dataclasses.fields(parts.read(kind, {"name": name}))}
  return {"name": name} | {key: value for key, value in SMALL.items() if key in known}


@functools.cache
def config(slot: str, name: str) -> ModelConfig:
  """A small model with one part in its place, and the paper's in all others."""
  chosen = PAPER | {slot: name}
  inputs = {"image_size": 32, "num_frames": 4, "audio_shape": (48, 32)}
  of_slots = {place: fields(SLOTS[place].kind, part) for place, part in chosen.items()}
  return read_model({"num_classes": 5, "inputs": inputs, **of_slots})


@functools.cache
def built(slot: str, name: str):
  """(graph definition, tunable, frozen) of that model; every parameter moved, so that no gate is shut."""
  cfg = config(slot, name)
  model = MmaDfer(cfg, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for variable in flat_params(nnx.state(model)).values():
    noise = rng.normal(0, 0.1, variable.shape).astype(np.float32)
    variable[...] = variable[...] + noise
  return split_tunable(model, tunable_patterns(cfg))


@functools.cache
def inputs(slot: str, name: str, clips: int = 3):
  i, rng = config(slot, name).inputs, np.random.default_rng(1)
  video = rng.integers(0, 256, (clips, *i.video_shape), dtype=np.uint8)
  found = [jnp.asarray(video), jnp.asarray(rng.normal(0, 0.5, (clips, *i.audio_shape)), jnp.float32)]
  points = rng.uniform(0, 1, (clips, *i.points_shape)).astype(np.float32)
  points[..., 2] = 1.0
  return *found, *[jnp.asarray(points)] * (i.points > 0)


def shapes_of(state) -> dict:
  return {path: tuple(variable.shape) for path, variable in flat_params(state).items()}


@pytest.mark.parametrize(("slot", "name"), IN_SLOTS)
def test_builds_without_memory_and_keeps_its_shapes(slot, name):
  cfg = config(slot, name)
  graphdef, state = abstract_model(cfg)
  assert all(not isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  i = cfg.inputs
  (batch,) = export.symbolic_shape("b")  # any number of clips, as an export needs it
  for clips in (3, batch):
    video = jax.ShapeDtypeStruct((clips, *i.video_shape), jnp.uint8)
    sound = jax.ShapeDtypeStruct((clips, *i.audio_shape), jnp.float32)
    points = [jax.ShapeDtypeStruct((clips, *i.points_shape), jnp.float32)] * (i.points > 0)
    outputs = jax.eval_shape(lambda s, *given: nnx.merge(graphdef, s)(*given), state, video, sound, *points)
    assert isinstance(outputs, parts.Outputs)
    assert (outputs.logits.shape, outputs.logits.dtype) == ((clips, 5), jnp.float32)


@pytest.mark.parametrize(("slot", "name"), IN_SLOTS)
def test_has_what_its_kind_promises(slot, name):
  cfg, model = config(slot, name), nnx.merge(*built(slot, name))
  for stream in ("image", "audio"):
    encoder = getattr(model, f"{stream}_encoder")
    assert isinstance(encoder, parts.Encoder)
    assert isinstance(getattr(model, f"{stream}_prompts"), parts.Adapter)
    assert len(encoder.blocks) == len(encoder.drop_path_rates) == getattr(cfg, stream).depth
  assert len(model.fusion) == cfg.layers
  assert all(isinstance(fusion, parts.Fusion) for fusion in model.fusion)


@pytest.mark.parametrize(("slot", "name"), IN_SLOTS)
def test_answers_alike_twice_also_in_bfloat16_and_gradients_reach_exactly_what_is_tunable(slot, name):
  graphdef, tunable, frozen = built(slot, name)
  given = inputs(slot, name)

  def loss(tunable, frozen):
    logits, extra = nnx.merge(graphdef, tunable, frozen)(*given)
    answers = sum((extra[task] ** 2).sum() for task in ("found_box", "found_landmarks") if task in extra)
    return (jax.nn.log_softmax(logits)[:, 0]).sum() + answers, logits

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, logits), gradients = run(tunable, frozen)
  (_, again), _ = run(tunable, frozen)
  np.testing.assert_array_equal(logits, again)
  assert np.isfinite(logits).all()
  assert shapes_of(gradients) == shapes_of(tunable)
  without = [path for path, g in flat_params(gradients).items() if not np.abs(np.asarray(g[...])).max() > 0]
  assert not without, "tunable, but nothing flows there"

  @jax.jit
  def in_bfloat16(tunable, frozen):
    model = nnx.merge(graphdef, cast(tunable, "bfloat16"), cast(frozen, "bfloat16"))
    return in_float32(model(given[0], given[1].astype("bfloat16"), *given[2:])).logits

  coarse = in_bfloat16(tunable, frozen)
  assert np.abs(coarse - logits).max() < 0.05 * np.abs(logits).max()
  assert (coarse != logits).any()


@pytest.mark.parametrize(("slot", "name"), IN_SLOTS)
def test_configs_come_back_from_json_and_parameters_from_the_authors_names(slot, name):
  cfg = config(slot, name)
  assert read_model(json.loads(json.dumps(cfg.to_fields()))) == cfg
  shapes = shapes_of(abstract_model(cfg)[1])
  if parts.authors_table(getattr(cfg, slot)) is None:
    with pytest.raises(UserError, match="no place for"):
      names.name_table(cfg)
    return
  rows = names.name_table(cfg)
  assert sorted(row.path for row in rows) == sorted(shapes)
  theirs = [name for row in rows for name in row.torch_names]
  assert len(theirs) == len(set(theirs))
  rng = np.random.default_rng(0)
  ours = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
  tensors = {name: tensor for row in rows for name, tensor in row.to_torch(ours[row.path]).items()}
  assert {name: tensor.shape for name, tensor in tensors.items()} == names.used_shapes(cfg)
  back = from_torch(tensors, rows)
  assert {path: value.tobytes() for path, value in back.items()} == {p: v.tobytes() for p, v in ours.items()}


@functools.cache
def written(slot: str, name: str):
  """That model in ONNX, and the engine that it was written from."""
  about = About(inputs=config(slot, name).inputs, streams=(), classes=tuple("abcde"), class_order="", recipe={}, origin={},
                precision="float32", fingerprint="")  # fmt: skip
  engine = JaxEngine(about, Path(), config(slot, name), *built(slot, name))
  return graph_of(engine), engine


@pytest.mark.slow
@pytest.mark.parametrize(("slot", "name"), IN_SLOTS)
def test_becomes_an_onnx_graph_that_answers_alike_for_any_number_of_clips(slot, name):
  model, engine = written(slot, name)
  given = dict(zip(("video", "spectrogram", "landmarks"), map(np.asarray, inputs(slot, name)), strict=False))
  expected = engine.outputs(*given.values())
  session = onnxruntime.InferenceSession(model.SerializeToString())
  for clips in (1, 3):
    found = session.run(list(expected), {name: array[:clips] for name, array in given.items()})
    for name, array in zip(expected, found, strict=True):
      np.testing.assert_allclose(array, expected[name][:clips], atol=1e-5, rtol=0, err_msg=name)


def test_named_functions_are_one_node_and_weights_are_stored_once():
  """Two layers of two encoders, each with a fusion; two layers of the temporal transformer."""
  model, engine = written(*IN_SLOTS[0])
  nodes = Counter(node.op_type for node in model.graph.node)
  assert (nodes["Gelu"], nodes["Softmax"]) == (4 + 4, 4 + 2)  # JAX's own GELU by tanh leaves no name
  assert (
    nodes["LayerNormalization"] == 2 * (4 + 2) + 2 + 4
  )  # of blocks, of the encoders' ends, of the fusions
  stored = {one.name: tuple(one.dims) for one in model.graph.initializer}
  shapes = shapes_of(engine.tunable) | shapes_of(engine.frozen)
  kernels = {path for path in shapes if path.endswith("kernel")}
  assert all(stored[path] == shapes[path] for path in kernels if len(shapes[path]) == 2)
  assert sum(one.ByteSize() for one in model.graph.initializer) < 1.3 * 4 * sum(
    map(math.prod, shapes.values())
  )


def test_what_has_no_rule_is_refused_by_its_name_and_line():
  (any_number,) = export.symbolic_shape("b")
  x = jax.ShapeDtypeStruct((any_number, 8), np.float32)

  def top(weights, x):
    return jnp.sort(x * weights["scale"])

  words = r"sort\(float32\[b,8\]\) of test_contracts\.py:\d+ in .*top: no rule for this primitive"
  with pytest.raises(UserError, match=words):
    to_onnx(top, {"scale": np.ones(8, np.float32)}, {"x": x}, "sorted")


@pytest.mark.parametrize(("kind", "name"), EVERY_PART)
def test_fields_have_comments_and_refuse_what_they_are_not(kind, name):
  source = (PACKAGE / kind / f"{name}.py").read_text()
  tree = ast.parse(source)
  assert ast.get_docstring(tree), "a file says what it is and where from"
  node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config")
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
  plain = ("tunable", "width", "depth", "heads", "head_dim", "mlp_dim")  # these say themselves what they are
  for field in (n for n in node.body if isinstance(n, ast.AnnAssign)):
    name_of = field.target.id
    assert {field.lineno, field.lineno - 1} & commented or name_of in plain, f"{name_of}: no comment"
  with pytest.raises(UserError, match="no such fields"):
    parts.read(kind, {"name": name, "no_such_field": 1})
  part = parts.read(kind, {"name": name})
  assert parts.fields_of(part)["name"] == name
  assert parts.read(kind, parts.fields_of(part)) == part
  for field in dataclasses.fields(part):
    if type(field.default) is int:
      with pytest.raises(UserError, match=f"{field.name}=-1"):
        parts.read(kind, {"name": name, field.name: -1})


@pytest.mark.parametrize("name", parts.names("losses"))
def test_losses_give_a_number_for_each_clip(name):
  loss = parts.read("losses", {"name": name}).build(jnp.array([3.0, 1, 4, 1, 5]))
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
  votes = jnp.asarray([[10, 0, 0, 0, 0], [2, 8, 0, 0, 0], [0, 0, 0, 0, 0], [0, 5, 5, 0, 0]], jnp.uint8)
  batch = {"label": jnp.asarray([0, 1, 4, 2], jnp.int32), "votes": votes}

  def each(logits, batch):
    return loss(parts.Outputs(logits), batch)

  losses = each(logits, batch)
  assert losses.shape == (4,)
  assert losses.dtype == jnp.float32
  gradient = jax.grad(lambda x: each(x, batch).sum())(logits)
  assert (np.abs(gradient).max(axis=1) > 0).all()
  alone = [each(logits[i : i + 1], {name: of[i : i + 1] for name, of in batch.items()})[0] for i in range(4)]
  np.testing.assert_allclose(losses, alone, rtol=1e-6)  # no clip changes another's


def test_each_part_draws_from_a_key_of_its_own():
  """Two models of one seed share every parameter that both have, whatever else differs."""
  base = nnx.state(MmaDfer(config("fusion", "bottleneck"), rngs=nnx.Rngs(7)))
  for slot, name in IN_SLOTS:
    other = flat_params(nnx.state(MmaDfer(config(slot, name), rngs=nnx.Rngs(7))))
    for path, variable in flat_params(base).items():
      elsewhere = path.split("/")[0] not in {place.split("/")[0] for place in SLOTS[slot].places}
      if elsewhere and path in other and other[path].shape == variable.shape:
        np.testing.assert_array_equal(variable[...], other[path][...], err_msg=f"{slot}={name}: {path}")
  moved = flat_params(nnx.state(MmaDfer(config("fusion", "bottleneck"), rngs=nnx.Rngs(8))))
  assert any((moved[path][...] != variable[...]).any() for path, variable in flat_params(base).items())
