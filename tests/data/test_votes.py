"""DFEW's votes from its table to batches, loss and report."""

import archives
from archives import DFEW, prepare, write_text
from commands import run
import numpy as np
import pytest
import small_runs as small

from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.pipeline import TrainOrder, load_batches
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.training.check import check_run
from mma_dfer_jax.training.predictions import Predictions, against_votes

HEADER = "1happy,2sad,3neutral,4angry,5surprise,6disgust,7fear,order,label"


def votes_of(label: int) -> list[int]:
  return [8 * (i == label) + 2 * (i == (label + 1) % 7) for i in range(7)]


def table(clips, changes=()) -> str:
  lines = {int(clip): [*votes_of(label), int(clip), label + 1] for clip, (_, label) in clips.items()}
  lines |= dict(changes) | {900: [3, 3, 4, 0, 0, 0, 0, 900, 0]}  # of no single label: in no list
  return "\n".join([HEADER, *(",".join(map(str, line)) for line in lines.values())]) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The data set, prepared with votes, of which clip 3 has none and clip 4 another favourite; and what was printed."""
  folder = tmp_path_factory.mktemp("votes")
  raw = archives.dfew(folder / "raw", frames=3)
  other = votes_of((DFEW["00004"][1] + 3) % 7)
  clips = {clip: of for clip, of in DFEW.items() if clip != "00003"}
  text = table(clips, {4: [*other, 4, DFEW["00004"][1] + 1]})
  write_text(raw / "Annotation/annotation.csv", text)
  printed = prepare("--dataset=dfew", f"--raw={raw}", f"--data_dir={folder}/data")
  return folder / "data", printed


def test_votes_are_stored_and_odd_ones_told(data):
  data_dir, printed = data
  assert "annotation.csv: clips without votes: 00003" in printed
  assert "annotation.csv: clips with most votes for another class than their label: 00004" in printed
  data_set = open_data_set(data_dir, "dfew")
  assert sum(data_set.votes.values()) == 9
  records = data_set.records("fold1+fold2+fold3+fold4+fold5")
  votes = data_set.votes_of("fold1+fold2+fold3+fold4+fold5")
  assert (votes.dtype, votes.shape) == (np.uint8, (10, 7))
  found = {records[i]["clip_id"].decode(): votes[i].tolist() for i in range(10)}
  assert found["00003"] == [0] * 7
  assert found["00005"] == votes_of(DFEW["00005"][1])


def test_batches_bring_votes_only_if_asked_for(data):
  order = TrainOrder(open_data_set(data[0], "dfew").records("fold1+fold2"), 0, 4, 1)
  how, inputs = {"num_workers": 0, "prefetch": 1}, Inputs(image_size=32, num_frames=2, audio_shape=(64, 128))
  with (
    load_batches(order, inputs, **how) as without,
    load_batches(order, inputs, votes=7, **how) as with_votes,
  ):
    one, other = next(without), next(with_votes)
  votes = other.pop("votes")
  assert votes.shape == (4, 7)
  assert set(votes.sum(axis=1)) <= {0, 10}
  assert one.keys() == other.keys()
  assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ([9, 0, 0, 0, 0, 0, 0, 5, 5], "the votes 9, 0, 0, 0, 0, 0, 0 are not whole numbers that add up to 10"),
    ([10, 0, 0, 0, 0, 0, "x", 5, 5], "are not whole numbers that add up to 10"),
    ([*votes_of(4), 5, 1], "the label 1 there is not"),
  ],
)
def test_wrong_lines_are_problems_of_their_clips(tmp_path, line, words):
  raw = archives.dfew(tmp_path, frames=1)
  write_text(raw / "Annotation/annotation.csv", table(DFEW, {5: line}))
  layout = archives.bad(archives.read("dfew", raw), words, left=9)
  assert all(clip.votes for clip in layout.clips)


def test_a_spreadsheet_is_told_to_be_saved_as_csv(tmp_path):
  raw = archives.dfew(tmp_path, frames=1)
  write_text(raw / "Annotation/annotation.xlsx", "PK\3\4 xl/workbook.xml")
  layout = archives.good(archives.read("dfew", raw), 10)
  notes = [str(note) for note in layout.notes]
  assert any(
    "votes are not kept, for it is a spreadsheet, not a csv; save it as CSV" in note for note in notes
  )


def test_agreement_with_votes():
  probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1.0, 0, 0]])
  predictions = Predictions(("a", "b", "c"), ("x", "y", "z"), np.array([0, 1, 2]), probabilities)
  found = against_votes(predictions, np.array([[5, 5, 0], [0, 10, 0], [0, 0, 0]], np.uint8))
  assert found["clips"] == 2
  assert found["won"] == pytest.approx(75)
  assert found["cross_entropy"] == pytest.approx(-(np.log(0.5) / 2 + np.log(0.25) / 2 + np.log(0.8)) / 2)


def run_config(data_dir, loss: str, **fields):
  from mma_dfer_jax.config import choose

  config = choose(
    small.config_of(data_dir, **{"data.name": "dfew", "data.fold": 1, "num_epochs": 1}), f"loss={loss}"
  )
  config.data.classes = ()
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
def test_a_run_on_votes_says_so(data, tmp_path, monkeypatch):
  config = run_config(data[0], "votes", **{"loss.ial_weight": 0.1})
  monkeypatch.setattr(small, "config_of", lambda *args, **how: config)
  printed = small.train_here(tmp_path / "run", data[0])
  assert "1 of them have no votes; their target is their label" in printed
  text = (tmp_path / "run/report.md").read_text()
  assert "votes (mix=1.0), 0.1 x intensity-aware loss" in text
  assert "of the votes won, 2 test clips" in text
  line = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]
  assert all(f'"{name}"' in line for name in ("loss", "votes", "ial"))
  status, out, err = run("evaluate", f"--workdir={tmp_path / 'run'}")
  assert status == 0, err
  reported = small.read_json(next((tmp_path / "run").glob("evaluation_*.json")))["without"]["none"]["votes"]
  assert f"{reported['won']:.2f} % of the votes won" in text
  assert f"{reported['won']:.2f} % of the votes won" in out


def test_votes_that_were_not_stored_are_asked_for(tmp_path, data_dir):
  config = small.config_of(data_dir)
  from mma_dfer_jax.config import choose

  with pytest.raises(UserError, match="loss=votes needs the votes of people, but the data set keeps none"):
    check_run(choose(config, "loss=votes"))
