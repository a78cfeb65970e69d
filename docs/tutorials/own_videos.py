# %% [markdown]
# # From your own videos to an answer
#
# Run the cells from top to bottom, in a notebook editor or with `python docs/tutorials/own_videos.py`. They take about a
# minute. The "videos" are generated here, so that you can try everything first. For your own videos, name your manifest in
# the next cell and leave out the cell after it.

# %%
import csv
from pathlib import Path
import subprocess
import sys

HOME = Path("tutorial_own_videos")  # where everything is written
MANIFEST = HOME / "videos/clips.csv"  # for your videos: Path("clips.csv"), beside them


def run(*command: str) -> None:
  """Does what `python -m mma_dfer_jax.COMMAND` does in a terminal, and stops if it fails."""
  print("\n$ python -m", *command, flush=True)
  subprocess.run([sys.executable, "-m", *command], check=True)


# %% Leave this cell out for your own videos
run(
  "mma_dfer_jax.data.demo",
  f"--out={MANIFEST.parent}",
  "--clips_per_class_train=2",
  "--clips_per_class_test=1",
)

# %% [markdown]
# ## 1. The manifest
# One line for each clip: where it lies, what it shows, and whether to learn from it or to test on it. Keep people of the
# test clips out of the training clips. Otherwise the score says how well the model remembers faces.

# %%
print(MANIFEST.read_text()[:200])

# %% [markdown]
# ## 2. Prepare and examine
# `prepare` reads every file completely and lists all problems before it writes anything. `doctor` looks at what was
# stored. Open `doctor.md` and the pages of sample clips: could a person tell the emotion from these?
#
# These clips are drawn faces, already cropped. For films of people add `"--faces=yunet"` to the first command.

# %%
run("mma_dfer_jax.data.prepare", "--dataset=clips", f"--manifest={MANIFEST}", f"--data_dir={HOME}/data")
run("mma_dfer_jax.data.doctor", f"--data_dir={HOME}/data", "--name=clips")

# %% [markdown]
# ## 3. Train
# `configs/clips.py` is small enough for a CPU. Three epochs with small pictures and two layers only show the steps: for a
# real run, leave out the last two lines of settings. Interrupted? Run the cell again, and it resumes.

# %%
run(
  "mma_dfer_jax.train", "--config=clips", f"--config.data.data_dir={HOME}/data", f"--workdir={HOME}/run",
  "--config.num_epochs=3", "--config.inputs.image_size=32", "--config.inputs.num_frames=4",
  "--config.model.image.depth=2", "--config.model.audio.depth=2", "--config.model.prompts.layers_per_stage=1",
)  # fmt: skip
print((HOME / "run/report.md").read_text()[:600])

# %% [markdown]
# ## 4. How much does each modality bring?

# %%
run("mma_dfer_jax.evaluate", f"--workdir={HOME}/run", "--without=none,sound,picture")

# %% [markdown]
# ## 5. Predict a new video
# From Python this time. Read the warnings: they are the reasons to trust an answer less. After three epochs the answer is a guess.

# %%
from mma_dfer_jax import load_model, predict_video  # noqa: E402

with open(MANIFEST, newline="") as file:
  clip = next(row for row in csv.DictReader(file) if row["split"] == "test")
model = load_model(f"{HOME}/run")
answer = predict_video(model, f"{MANIFEST.parent}/{clip['path']}")
print(f"shown: {clip['label']}, predicted: {answer.top}")
for emotion, probability in answer.probabilities.items():
  print(f"  {emotion:10s} {probability:6.1%}")
print("warnings:", answer.warnings or "none")
