# %% [markdown]
# # Add a part
#
# A part is one file in the folder of its kind. Here: a classifier of two layers, and a loss. Run this in a checkout of the
# project. The cells write two files into `mma_dfer_jax/` and a folder `tutorial_part/`; `git status` shows them afterwards.

# %%
from pathlib import Path
import subprocess
import sys

import mma_dfer_jax

PACKAGE = Path(mma_dfer_jax.__file__).parent


def run(*command: str) -> None:
  """Runs `python -m COMMAND` and stops if it fails."""
  print("\n$ python -m", *command, flush=True)
  subprocess.run([sys.executable, "-m", *command], check=True, cwd=PACKAGE.parent)


# %% [markdown]
# ## 1. The head
# `Config` holds the fields that a config can set, each with a comment that `--help` shows. `build` makes the module. What a
# head promises stands in `mma_dfer_jax/parts.py`: clips (B, W) in, logits (B, C) out.

# %%
(PACKAGE / "heads/two_layers.py").write_text('''"""A classifier of two layers."""

import dataclasses

from flax import nnx
import jax
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TorchLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Both layers are trained."""

  hidden: int = 24  # width of the layer between

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "TwoLayers":
    return TwoLayers(self, width, num_classes, rngs=rngs)


class TwoLayers(nnx.Module):
  def __init__(self, cfg: Config, width: int, num_classes: int, *, rngs: nnx.Rngs):
    self.first = TorchLinear(width, cfg.hidden, rngs=rngs)
    self.second = TorchLinear(cfg.hidden, num_classes, rngs=rngs)

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:
    return parts.Outputs(self.second(jax.nn.tanh(self.first(clip))))
''')

# %% [markdown]
# ## 2. The loss
# One number for each clip. A loss has no parameters; its fields for class weights, logit adjustment and the intensity-aware
# loss come from `parts.LossPart`.

# %%
(
  PACKAGE / "losses/brier.py"
).write_text('''"""Brier's score: the squared distance between probabilities and the truth."""

from collections.abc import Mapping
import dataclasses

import jax
from jaxtyping import Array, Float

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.LossPart):
  """It has no fields of its own."""

  def build(self, clips_per_class: Float[Array, "C"]) -> parts.Loss:
    del clips_per_class
    return brier


def brier(
  outputs: parts.Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
) -> Float[Array, "B"]:
  truth = jax.nn.one_hot(batch["label"], outputs.logits.shape[-1])
  losses = ((jax.nn.softmax(outputs.logits) - truth) ** 2).sum(-1)
  return parts.weighted(losses, weights, batch["label"])
''')

# %% [markdown]
# ## 3. The contract tests find both files by themselves
# They build the part without memory, compare shapes, check which parameters get gradients, compute in bfloat16, export, and
# read the config back.

# %%
run("pytest", "tests/parts", "-k", "two_layers or brier")

# %% [markdown]
# ## 4. Choose them
# On the command line; every field can be set.

# %%
run(
  "mma_dfer_jax.data.demo",
  "--out=tutorial_part/clips",
  "--clips_per_class_train=2",
  "--clips_per_class_test=1",
)
run("mma_dfer_jax.data.prepare", "--manifest=tutorial_part/clips/clips.csv", "--data_dir=tutorial_part/data")
run(
  "mma_dfer_jax.train", "--config=demo:head=two_layers,loss=brier", "--config.model.head.hidden=16",
  "--config.data.data_dir=tutorial_part/data", "--workdir=tutorial_part/run", "--config.num_epochs=1",
  "--config.batch_size=4", "--config.inputs.image_size=32", "--config.inputs.num_frames=4",
)  # fmt: skip
