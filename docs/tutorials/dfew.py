# %% [markdown]
# # DFEW with the authors' weights
#
# With the archive, MAE-Face's and AudioMAE's files, or a trained checkpoint of the authors, these are the commands. The
# cells run on a small replica: the folders and lists of DFEW around generated clips, and a checkpoint in the authors' format
# that is 48 wide and untrained. **The figures mean nothing; the steps are the real ones.**
#
# With the real archive, name it and the checkpoint in the next cell, and leave out the cell after it.

# %%
import csv
from pathlib import Path
import subprocess
import sys

import av
import numpy as np
import soundfile

import mma_dfer_jax

HOME = Path("tutorial_dfew")  # where everything is written
ARCHIVE = HOME / "DFEW-part2"  # for the real one: where you unpacked it
CHECKPOINT = Path(mma_dfer_jax.__file__).parents[1] / "tests/golden/tiny_reference_checkpoint.pth"  # or yours


def run(*command: str) -> None:
  """Does what `python -m mma_dfer_jax.COMMAND` does in a terminal, and stops if it fails."""
  print("\n$ python -m", *command, flush=True)
  subprocess.run([sys.executable, "-m", *command], check=True)


# %% Leave this cell out for the real archive
# It makes the replica, and shows what `prepare` looks for: pictures of each clip in a folder of its number, its sound as a
# wav, and two csv files for each fold.
run("mma_dfer_jax.data.demo", f"--out={HOME}/clips", "--clips_per_class_train=2", "--clips_per_class_test=1")
classes = ["happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"]  # DFEW's labels 1 to 7
(ARCHIVE / "Clip/raw_wav").mkdir(parents=True, exist_ok=True)
with open(HOME / "clips/clips.csv", newline="") as file:
  clips = list(csv.DictReader(file))
for number, clip in enumerate(clips, 1):
  pictures = ARCHIVE / f"Clip/clip_224x224/{number:05d}"
  pictures.mkdir(parents=True, exist_ok=True)
  with av.open(HOME / "clips" / clip["path"]) as file:
    for place, frame in enumerate(file.decode(video=0), 1):
      frame.to_image().save(pictures / f"{place}.jpg")
  with av.open(HOME / "clips" / clip["path"]) as file:
    rate = file.streams.audio[0].rate
    sound = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
  soundfile.write(ARCHIVE / f"Clip/raw_wav/{number}.wav", sound.T, rate)
for fold in range(1, 6):
  for part in ("train", "test"):
    rows = ["video_name,label"]
    for number, clip in enumerate(clips, 1):
      if (number % 5 == fold - 1) == (part == "test"):
        rows.append(f"{number},{classes.index(clip['label']) + 1}")
    path = ARCHIVE / f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")

# %% [markdown]
# ## 1. Look before decoding, prepare, examine
# Read what `doctor` says about numbers of clips: with other numbers than the published ones, scores cannot be compared.
#
# For the replica, expect warnings: the numbers of clips, classes that some folds lack, and sounds at 16 kHz, for the demo's
# clips have 16 kHz. With the real archive, the warning about 16 kHz means that the wavs were converted: extract them again.

# %%
run("mma_dfer_jax.data.prepare", "--dataset=dfew", f"--raw={ARCHIVE}", f"--data_dir={HOME}/data", "--check")
run("mma_dfer_jax.data.prepare", "--dataset=dfew", f"--raw={ARCHIVE}", f"--data_dir={HOME}/data")
run("mma_dfer_jax.data.doctor", f"--data_dir={HOME}/data", "--name=dfew")

# %% [markdown]
# ## 2. The authors' checkpoint
# The program executes nothing in the file and needs no PyTorch. The folder that `convert` writes works wherever a run does.

# %%
run("mma_dfer_jax.convert", f"--model={CHECKPOINT}", "--classes=dfew", f"--out={HOME}/model")
run(
  "mma_dfer_jax.evaluate",
  f"--workdir={HOME}/model",
  f"--data_dir={HOME}/data",
  "--data_name=dfew",
  "--split=fold1",
)

# %% [markdown]
# ## 3. Train five folds from the pretraining files
# On a GPU or TPU, with the real files:
#
#     ./launch.sh folds configs/dfew.py runs/dfew --config.data.data_dir=data \
#         --config.pretrained.image=mae_face_pretrain_vit_base.pth --config.pretrained.audio=pretrained.pth
#
# `folds.md` then compares the mean of five folds with the published 67.01 UAR and 77.51 WAR.
