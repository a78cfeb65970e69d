#!/usr/bin/env bash
# One door to everything: ./launch.sh demo | test | prepare … | doctor … | train … | folds … | evaluate … | predict … |
# page … | convert … | export …
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
./launch.sh demo            generate clips, prepare, train, evaluate, predict one clip (minutes on two CPU cores)
./launch.sh test [args]     format, lint, types, tests; arguments go to pytest
./launch.sh install         make .venv, nothing else
./launch.sh prepare …       python -m mma_dfer_jax.data.prepare …
./launch.sh doctor …        python -m mma_dfer_jax.data.doctor …
./launch.sh train …         python -m mma_dfer_jax.train …
./launch.sh folds CONFIG RUNS …   train and evaluate all folds: mma_dfer_jax.folds --config=CONFIG --runs=RUNS …
./launch.sh evaluate …      python -m mma_dfer_jax.evaluate …
./launch.sh predict …       python -m mma_dfer_jax.predict …
./launch.sh page …          python -m mma_dfer_jax.demo_page … (and what it needs beyond the rest)
./launch.sh convert …       python -m mma_dfer_jax.convert …
./launch.sh export …        python -m mma_dfer_jax.export …

Makes .venv when it is missing. PYTHON=python3.12 chooses another Python (3.11 or newer).
TEXT
}

# A marker with the hash of what was installed from tells whether .venv is up to date: a second start takes no time.
install() {
  local python="${PYTHON:-python3}" wanted marker=.venv/installed-from
  wanted="$(cat pyproject.toml requirements.lock | sha256sum) $("$python" -c 'import sys; print(sys.version_info[:2])')"
  if [[ -x .venv/bin/python && -f $marker && "$(cat $marker)" == "$wanted" ]]; then return; fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$python" --version) is too old; give PYTHON=python3.11 or newer" >&2; exit 1; }
  echo "installing into .venv (once, a minute or two) …" >&2
  "$python" -m venv .venv || {
    echo "error: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
  .venv/bin/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[test]'
  echo "$wanted" > "$marker"
}

run() { .venv/bin/python -m "$@"; }
become() { exec .venv/bin/python -m "$@"; } # signals reach the command itself, not a shell that waits for it

folds() {
  if (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then
    echo "error: ./launch.sh folds CONFIG RUNS [flags], as in: ./launch.sh folds configs/dfew.py runs/dfew" >&2
    exit 2
  fi
  install
  become mma_dfer_jax.folds --config="$1" --runs="$2" "${@:3}"
}

page() {
  .venv/bin/python -c "import gradio" 2>/dev/null ||
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[demo-page]'
  become mma_dfer_jax.demo_page "$@"
}

demo() {
  local started=$SECONDS home=runs/demo
  run mma_dfer_jax.data.demo --out=$home/clips
  run mma_dfer_jax.data.prepare --dataset=clips --manifest=$home/clips/clips.csv --data_dir=$home/data
  run mma_dfer_jax.train --config=configs/demo.py --workdir=$home/run
  run mma_dfer_jax.evaluate --workdir=$home/run --without=none,sound,picture
  run mma_dfer_jax.predict --model=$home/run --out=$home/answers $home/clips/test/surprise_s0_0000.mp4
  echo "done in $((SECONDS - started)) s: $home/run/report.md, and pictures beside it; rm -r $home to start anew"
}

tests() {
  run ruff format --check .
  run ruff check .
  run mypy
  run pytest -n 2 --dist loadfile "$@" # two processes, each with whole files: fixtures are made once
}

command="${1:-help}"
shift || true
case "$command" in
  demo) install; demo ;;
  install) install ;;
  test) install; tests "$@" ;;
  prepare | doctor) install; become "mma_dfer_jax.data.$command" "$@" ;;
  page) install; page "$@" ;;
  folds) folds "$@" ;;
  train | evaluate | predict | convert | export) install; become "mma_dfer_jax.$command" "$@" ;;
  help | -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
