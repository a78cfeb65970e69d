# %% [markdown]
# # From your own videos to an answer
#
# Run the cells from top to bottom, in a notebook editor or with `python docs/tutorials/own_videos.py`. They take about a
# minute. The "videos" are generated here, so that you can try everything first. For yours, write `clips.csv` yourself
# and leave out the first cell.

# %%
import csv
from pathlib import Path
import subprocess
import sys

HOME = Path("tutorial_own_videos")


def run(command: str) -> None:
  """Does what `python -m mma_dfer_jax.COMMAND` does in a terminal, and stops if it fails."""
  print(f"\n$ python -m mma_dfer_jax.{command}", flush=True)
  subprocess.run([sys.executable, "-m", *f"mma_dfer_jax.{command}".split()], check=True)


run(f"data.demo --out={HOME}/videos --clips_per_class_train=2 --clips_per_class_test=1")

# %% [markdown]
# ## 1. The manifest
# One line for each clip: where it lies, what it shows, and whether to learn from it or to test on it. People in the test
# clips should not be in the training clips, otherwise the score says how well the model remembers faces.

# %%
print((HOME / "videos/clips.csv").read_text()[:200])

# %% [markdown]
# ## 2. Prepare and examine
# `prepare` reads every file completely and lists all problems before it writes anything. `doctor` looks at what was
# stored. Open `doctor.md` and the pages of sample clips: is this what you would show a person?
#
# These clips are drawn faces, already cropped. For films of people add `--faces=yunet`.

# %%
run(f"data.prepare --dataset=clips --manifest={HOME}/videos/clips.csv --data_dir={HOME}/data")
run(f"data.doctor --data_dir={HOME}/data --name=clips")

# %% [markdown]
# ## 3. Train
# `configs/clips.py` is small enough for a CPU. Three epochs with small pictures and two layers show how it goes, and no more:
# leave out the last lines of settings for a real run. Interrupted? Run the cell again, and it resumes.

# %%
run(
  f"train --config=clips --config.data.data_dir={HOME}/data --workdir={HOME}/run"
  " --config.num_epochs=3 --config.inputs.image_size=32 --config.inputs.num_frames=4"
  " --config.model.image.depth=2 --config.model.audio.depth=2 --config.model.prompts.layers_per_stage=1"
)
print((HOME / "run/report.md").read_text()[:600])

# %% [markdown]
# ## 4. How much does each modality bring?

# %%
run(f"evaluate --workdir={HOME}/run --without=none,sound,picture")

# %% [markdown]
# ## 5. Answer a new video
# From Python this time. Read the warnings: they are the reasons to trust an answer less. After three epochs the answer is a guess.

# %%
from mma_dfer_jax import load_model, predict_video  # noqa: E402

with open(HOME / "videos/clips.csv", newline="") as file:
  clip = next(row for row in csv.DictReader(file) if row["split"] == "test")
model = load_model(f"{HOME}/run")
answer = predict_video(model, f"{HOME}/videos/{clip['path']}")
print(f"shown: {clip['label']}, answered: {answer.top}")
for emotion, probability in answer.probabilities.items():
  print(f"  {emotion:10s} {probability:6.1%}")
print("warnings:", answer.warnings or "none")
