#!/usr/bin/env bash
# The whole pipeline as Ray jobs, one after another, on a cluster that is running (`ray start --head`):
#
#   jobs/run_all.sh [ADDRESS] [RECIPE] [--set a.b=c ...]
#
# Each is `askd submit`: code and recipe travel with the job. Results lie in runs/<name>/ of the current folder, which
# the cluster's nodes must see under the same path, as they must the data. Without a recipe (or with "") it is the run's
# own, or the demo's. A stage that has finished is not done again, so the script can be run again after a failure.
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
