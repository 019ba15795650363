#!/usr/bin/env bash
# Runs the whole pipeline as Ray jobs, one after another, on a running cluster (`ray start --head`):
#
#   jobs/run_all.sh [ADDRESS] [RECIPE] [--set a.b=c ...]
#
# Each job uses `askd submit`, which uploads code and recipe. Results are in runs/<name>/ of the current folder. The
# cluster's nodes must have this folder and the data at the same paths. Without a recipe (or with ""), the recipe is that
# of the run, or the demo's. Finished stages do not run again, so you can run the script again after a failure.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
address=${1:-http://127.0.0.1:8265}
options=(${2:+--recipe "$2"} "${@:3}")

job() {
    echo "== $1"
    python -m askd_ray submit "$1" --address "$address" ${options[@]+"${options[@]}"}
}

job prepare  # sources -> Parquet shards, split by speaker
job label    # Ray Data: the teacher's soft labels, once
job distill  # Ray Data -> Ray Train: the student
job export   # bundle: transformers and CTranslate2 folders, model card
job evaluate # teacher against student: WER with intervals, latency

echo "Serve the student: askd serve --bundle runs/NAME/bundle"
echo "Search for a better recipe first: askd submit tune --address $address ${options[*]+${options[*]}}"
