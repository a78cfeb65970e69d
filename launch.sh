#!/usr/bin/env bash
# One door to everything: ./launch.sh demo | test | prepare … | doctor … | pretrain … | train … | folds … | ablate … |
# probe … | few_labels … | evaluate … | predict … | page … | convert … | export … | benchmark … | tpu … | slurm …
# Paths are those of the folder that it is called from.
set -euo pipefail
home="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
python="$home/.venv/bin/python"
# The package of this checkout, and nothing that happens to lie in the caller's folder (random.py, …).
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

# Read by glibc before Python starts (docs/performance.md): huge pages spare page faults on the large buffers of a step,
# and one arena instead of one for each thread keeps less of what the compiler has freed.
memory=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1
# For training and evaluation besides: keep a step's buffers for the next step instead of giving them back each time.
memory_of_steps=$memory:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
case "${1:-}" in train | pretrain | few_labels | probe | evaluate | folds | ablate | benchmark) memory=$memory_of_steps ;; esac
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$memory}"

trap '' PIPE # whoever reads may leave: the work is finished all the same
usage() {
  cat 2>/dev/null <<'TEXT' || true
./launch.sh demo            generate clips, prepare, pretrain both encoders, adapt to few labels, train, evaluate, predict
./launch.sh test [--quick] [args]   format, lint, types, tests (--quick: none that starts a process); args go to pytest
./launch.sh install [gpu|tpu]   make .venv, nothing else; with what JAX needs for such devices
./launch.sh prepare …       python -m mma_dfer_jax.data.prepare …
./launch.sh doctor …        python -m mma_dfer_jax.data.doctor …
./launch.sh pretrain …      python -m mma_dfer_jax.pretrain …
./launch.sh train …         python -m mma_dfer_jax.train …
./launch.sh folds CONFIG RUNS …   train and evaluate all folds: mma_dfer_jax.folds --config=CONFIG --runs=RUNS …
./launch.sh ablate CONFIG RUNS …  train rows of an ablation study with several seeds: mma_dfer_jax.ablate --config=CONFIG …
./launch.sh probe …         python -m mma_dfer_jax.probe …
./launch.sh few_labels …    python -m mma_dfer_jax.few_labels …
./launch.sh evaluate …      python -m mma_dfer_jax.evaluate …
./launch.sh predict …       python -m mma_dfer_jax.predict …
./launch.sh page …          python -m mma_dfer_jax.demo_page …
./launch.sh convert …       python -m mma_dfer_jax.convert …
./launch.sh export …        python -m mma_dfer_jax.export …
./launch.sh benchmark …     python -m mma_dfer_jax.benchmark …
./launch.sh tpu NAME ZONE COMMAND …      a command from above on all workers of a TPU VM, as one run (gcloud)
./launch.sh slurm NODES GPUS COMMAND …   a command from above on NODES x GPUS, as one run (sbatch)

DRY_RUN=1 prints what tpu and slurm would do instead of doing it.
Makes .venv when it is missing. PYTHON=python3.12 chooses another Python (3.11 or newer).
TEXT
}

# A marker with the hash of what was installed from tells whether .venv is up to date: a second start takes no time.
install() {
  local given="${PYTHON:-python3}" wanted marker="$home/.venv/installed-from"
  wanted="$(cd "$home"; cat pyproject.toml setup.py requirements.lock | sha256sum) $("$given" -c 'import sys; print(sys.version_info[:2])')"
  if [[ -x $python && -f $marker && "$(cat "$marker")" == "$wanted" ]]; then return; fi
  "$given" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$given" --version) is too old; give PYTHON=python3.11 or newer" >&2; exit 1; }
  echo "installing into $home/.venv (once, a minute or two) …" >&2
  "$given" -m venv "$home/.venv" || {
    echo "error: $given cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
  pip_install test
  echo "$wanted" > "$marker"
}

pip_install() { # EXTRA
  "$python" -m pip install -qq --disable-pip-version-check -c "$home/requirements.lock" -e "$home[$1]"
}

# What JAX needs for GPUs or TPUs, beside what is there.
install_for() {
  case "${1:-}" in
    "") ;;
    gpu | tpu) pip_install "$1" ;;
    *) echo "error: ./launch.sh install takes nothing, gpu or tpu, not $1" >&2; exit 2 ;;
  esac
}

# Shown instead of done with DRY_RUN=1, quoted so that it can be pasted.
do_or_show() { if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

is_distributed() { # of the commands, those that work as one in many processes
  case "${1:-}" in
    train | pretrain | evaluate | folds) ;;
    *) echo "error: train, pretrain, evaluate and folds run on many hosts, not '${1:-}'" >&2; exit 2 ;;
  esac
}

tpu() {
  if (($# < 3)) || [[ -z $1 || -z $2 ]]; then
    echo "error: ./launch.sh tpu NAME ZONE COMMAND …, as in: ./launch.sh tpu pod us-west4-a train --config=…" >&2; exit 2
  fi
  local name=$1 zone=$2 archive=/tmp/mma_dfer_jax.tar.gz command
  shift 2
  is_distributed "$1"
  command="mkdir -p mma_dfer_jax && tar -xzf mma_dfer_jax.tar.gz -C mma_dfer_jax && cd mma_dfer_jax && "
  command+="./launch.sh install tpu && MMA_DFER_DISTRIBUTED=1 ./launch.sh$(printf ' %q' "$@")"
  (cd "$home"; do_or_show git archive --format=tar.gz --output="$archive" HEAD)
  do_or_show gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all
  do_or_show gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
}

slurm_script() { # NODES GPUS COMMAND …; it runs in the folder that it was sent from
  local launch; launch="$(printf '%q' "$home/launch.sh")"
  if [[ . -ef $home ]]; then launch=./launch.sh; fi
  cat <<SCRIPT
#!/bin/bash
#SBATCH --job-name=mma_dfer
#SBATCH --nodes=$1
#SBATCH --ntasks-per-node=$2
#SBATCH --gpus-per-node=$2
#SBATCH --cpus-per-task=${CPUS:-8}
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One process for each GPU, as JAX expects under SLURM. Two minutes before the time is up SIGTERM makes them save;
# the same script resumes from there.
export MMA_DFER_DISTRIBUTED=1
srun $launch$(printf ' %q' "${@:3}")
SCRIPT
}

slurm() {
  if (($# < 3)) || [[ ! "$1 $2" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]]; then
    echo "error: ./launch.sh slurm NODES GPUS COMMAND …, as in: ./launch.sh slurm 2 8 train --config=…" >&2; exit 2
  fi
  is_distributed "$3"
  if [[ -n ${DRY_RUN:-} ]]; then slurm_script "$@"; return; fi
  install # here, once: the processes would do it at the same time
  slurm_script "$@" | sbatch
}

run() { "$python" -m "$@"; }
become() { exec "$python" -m "$@"; } # signals reach the command itself, not a shell that waits for it

# configs/NAME.py is that of the checkout where the caller's folder has none.
config_of() { if [[ $1 == configs/* && ! -e ${1%%:*} && -e $home/${1%%:*} ]]; then echo "$home/$1"; else echo "$1"; fi; }
with_configs() { # of all arguments, in `arguments`
  arguments=()
  local argument before=
  for argument in "$@"; do
    if [[ $argument == --config=* ]]; then argument="--config=$(config_of "${argument#*=}")"; fi
    if [[ $before == --config ]]; then argument="$(config_of "$argument")"; fi
    before=$argument
    arguments+=("$argument")
  done
}

many_runs() { # folds or ablate, CONFIG RUNS …
  if (($# < 3)) || [[ $2 == -* || $3 == -* ]]; then
    echo "error: ./launch.sh $1 CONFIG RUNS [flags], as in: ./launch.sh $1 configs/dfew.py runs/dfew" >&2
    exit 2
  fi
  install
  become "mma_dfer_jax.$1" --config="$(config_of "$2")" --runs="$3" "${@:4}"
}

demo() {
  local started=$SECONDS out=runs/demo # below the caller's folder, as configs/demo.py says
  run mma_dfer_jax.data.demo --out=$out/clips
  run mma_dfer_jax.data.prepare --dataset=clips --manifest=$out/clips/clips.csv --data_dir=$out/data
  export GLIBC_TUNABLES=$memory_of_steps
  # The clips without their labels; then few and all of the labels, with encoders that stay as they are.
  run mma_dfer_jax.pretrain --config="$home/configs/pretrain_frames.py:demo" --config.num_steps=800 \
    --config.data.data_dir=$out/data --workdir=$out/frames
  run mma_dfer_jax.pretrain --config="$home/configs/pretrain_sound.py:demo" --config.num_steps=400 \
    --config.data.data_dir=$out/data --workdir=$out/sound
  local encoders=(--config.pretrained.image=$out/frames/encoder.safetensors --config.pretrained.audio=$out/sound/encoder.safetensors)
  run mma_dfer_jax.few_labels --config="$home/configs/demo.py" "${encoders[@]}" --out=$out/labels --steps=140 \
    --config.batch_size=8 --config.learning_rate=4e-3 --config.inputs.num_frames=4 --config.remat=none
  run mma_dfer_jax.train --config="$home/configs/demo.py" "${encoders[@]}" --workdir=$out/run --config.num_epochs=8
  export GLIBC_TUNABLES=$memory
  run mma_dfer_jax.evaluate --workdir=$out/run --without=none,sound,picture
  run mma_dfer_jax.predict --model=$out/run --out=$out/answers $out/clips/test/surprise_s0_0000.mp4
  echo "done in $((SECONDS - started)) s: $out/labels/few_labels.md, $out/run/report.md, and pictures beside them; rm -r $out to start anew" 2>/dev/null || true
}

tests() {
  cd "$home"
  run ruff format --check .
  run ruff check .
  run mypy
  if [[ ${1:-} == --quick ]]; then set -- -m "not slow" "${@:2}"; fi
  # Two processes, each with whole files: fixtures are made once; the order is that of tests/conftest.py.
  run pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
}

command="${1:-help}"
shift || true
case "$command" in
  demo) install; demo ;;
  install) install; install_for "$@" ;;
  test) install; tests "$@" ;;
  prepare | doctor) install; become "mma_dfer_jax.data.$command" "$@" ;;
  page) install; become mma_dfer_jax.demo_page "$@" ;;
  folds | ablate) many_runs "$command" "$@" ;;
  tpu) tpu "$@" ;;
  slurm) slurm "$@" ;;
  train | pretrain | few_labels | probe | evaluate | predict | convert | export | benchmark)
    install; with_configs "$@"; become "mma_dfer_jax.$command" ${arguments[@]+"${arguments[@]}"} ;;
  help | -h | --help) usage ;;
  *) echo "error: there is no command '$command'; there are:" >&2; usage >&2; exit 2 ;;
esac
