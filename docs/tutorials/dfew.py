# %% [markdown]
# # DFEW with the authors' weights
#
# With the archive, MAE-Face's and AudioMAE's files, or a trained checkpoint of the authors, these are the commands. The
# cells run on a small replica: the folders and lists of DFEW around generated clips, and a checkpoint of the authors' format
# that is 48 wide and good for nothing. **The figures mean nothing; the steps are the real ones.**

# %%
import csv
from pathlib import Path
import subprocess
import sys

import av
import numpy as np
import soundfile

HOME = Path("tutorial_dfew")
CHECKOUT = Path(__file__).resolve().parents[2] if "__file__" in globals() else Path.cwd()
CLASSES = ["happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"]  # DFEW's labels 1 to 7


def run(command: str) -> None:
  """Does what `python -m mma_dfer_jax.COMMAND` does in a terminal, and stops if it fails."""
  print(f"\n$ python -m mma_dfer_jax.{command}", flush=True)
  subprocess.run([sys.executable, "-m", *f"mma_dfer_jax.{command}".split()], check=True)


run(f"data.demo --out={HOME}/clips --clips_per_class_train=2 --clips_per_class_test=1")

# %% [markdown]
# ## A replica of the archive
# You have the real one; leave this cell out. It shows what `prepare` looks for: pictures of each clip in a folder of its
# number, its sound as a wav, and two csv files a fold.

# %%
archive = HOME / "DFEW-part2"
(archive / "Clip/raw_wav").mkdir(parents=True, exist_ok=True)
with open(HOME / "clips/clips.csv", newline="") as file:
  clips = list(csv.DictReader(file))
for number, clip in enumerate(clips, 1):
  pictures = archive / f"Clip/clip_224x224/{number:05d}"
  pictures.mkdir(parents=True, exist_ok=True)
  with av.open(HOME / "clips" / clip["path"]) as file:
    for place, frame in enumerate(file.decode(video=0), 1):
      frame.to_image().save(pictures / f"{place}.jpg")
  with av.open(HOME / "clips" / clip["path"]) as file:
    rate = file.streams.audio[0].rate
    sound = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
  soundfile.write(archive / f"Clip/raw_wav/{number}.wav", sound.T, rate)
for fold in range(1, 6):
  for part in ("train", "test"):
    rows = ["video_name,label"]
    for number, clip in enumerate(clips, 1):
      if (number % 5 == fold - 1) == (part == "test"):
        rows.append(f"{number},{CLASSES.index(clip['label']) + 1}")
    path = archive / f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")

# %% [markdown]
# ## 1. Look before decoding, prepare, examine
# Read what `doctor` says about counts: other counts than the published ones mean that scores cannot be compared.

# %%
run(f"data.prepare --dataset=dfew --raw={archive} --data_dir={HOME}/data --check")
run(f"data.prepare --dataset=dfew --raw={archive} --data_dir={HOME}/data")
run(f"data.doctor --data_dir={HOME}/data --name=dfew")

# %% [markdown]
# ## 2. The authors' checkpoint
# Nothing in the file is executed, and PyTorch is not needed. The folder that `convert` writes works wherever a run does.

# %%
checkpoint = CHECKOUT / "tests/golden/tiny_reference_checkpoint.pth"
run(f"convert --model={checkpoint} --classes=dfew --out={HOME}/model")
run(f"evaluate --workdir={HOME}/model --data_dir={HOME}/data --data_name=dfew --split=fold1")

# %% [markdown]
# ## 3. Train five folds from the pretraining files
# On a GPU or TPU, with the real files:
#
#     ./launch.sh folds configs/dfew.py runs/dfew --config.data.data_dir=data \
#         --config.pretrained.image=mae_face_pretrain_vit_base.pth --config.pretrained.audio=pretrained.pth
#
# `folds.md` then compares the mean of five folds with the published 67.01 UAR and 77.51 WAR.
