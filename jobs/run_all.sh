#!/usr/bin/env bash
# The whole pipeline as Ray jobs, one after another, on a cluster that is running (`ray start --head`):
#
#   jobs/run_all.sh [ADDRESS] [RECIPE] [--set a.b=c ...]
#
# Results lie in runs/<name>/ of this checkout, which the cluster's nodes must see under the same path. A stage that has
# finished is not done again, so the script can be run again after a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

address=${1:-http://127.0.0.1:8265}
recipe=${2:-demo}
overrides=("${@:3}")

# Ray's command line uses the token in the home folder only when told to; a cluster started after it exists wants it.
if [[ -z ${RAY_AUTH_MODE:-} && -f ~/.ray/auth_token ]]; then
    export RAY_AUTH_MODE=token
fi

job() {
    echo "== $1"
    # The job runs in a copy of this folder, so where it writes is said absolutely.
    ray job submit --address "$address" --working-dir . -- \
        python "jobs/$1.py" --recipe "$recipe" --set "runs_root=$PWD/runs" ${overrides[@]+"${overrides[@]}"}
}

job prepare  # sources -> Parquet shards, split by speaker
job label    # Ray Data: the teacher's soft labels, once
job distill  # Ray Data -> Ray Train: the student
job export   # bundle: transformers and CTranslate2 folders, model card
job evaluate # teacher against student: WER with intervals, latency

echo "Serve the student: askd serve --bundle runs/NAME/bundle"
echo "Search for a better recipe first: ray job submit --address $address --working-dir . -- python jobs/tune.py --recipe $recipe"
