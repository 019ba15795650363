#!/usr/bin/env bash
# The Makefile's targets: install what is missing, then run. `bash scripts/tasks.sh demo|test|test-all|lint|docs|setup|clean`
#
# PYTHON=python3.13   the Python for .venv (default: the first suitable one of the list below)
# SPEECH=FOLDER       demo: a folder of speech with a manifest, instead of the IVR prompts from Debian's archive
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly PY=$VENV/bin/python
readonly UNFINISHED=$VENV/.installing
readonly FULL_INSTALL_GB=11 # 7 for .venv, the rest for downloads
readonly UPDATE_GB=1
install_s=0 # duration of the install in this call; 0 if nothing was missing
trap 'exit 130' INT # also if the interrupted command returns a normal error code

fail() {
    printf 'askd: %s\n' "$*" >&2
    exit 2
}

step() { # step 'description and approximate duration' COMMAND...
    local begun=$SECONDS
    printf '\n==> %s\n' "$1"
    "${@:2}"
    printf '    done in %d s\n' $((SECONDS - begun))
}

find_python() { # print the first Python that is new enough and can create environments
    local candidate bare=""
    for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        bare=${bare:-$("$candidate" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}
    done
    [ -z "$bare" ] || fail "$bare cannot make virtual environments: apt-get install $bare-venv"
    fail "no Python >= 3.11 here (${PYTHON:-python3.12, python3.11, python3.13, python3} tried):" \
        "apt-get install python3 python3-venv, or name one with PYTHON=..."
}

venv_works() { # .venv has pip, no unfinished install, and was created for this folder
    [ ! -e "$UNFINISHED" ] && "$PY" -m pip --version >/dev/null 2>&1 && grep -qsF "$(pwd -P)/$VENV/" "$VENV/bin/pip"
}

stamp() { # print the hash that identifies a finished install of an extra
    { echo "$1" && cat pyproject.toml constraints.txt; } | sha256sum | cut -d ' ' -f 1
}

is_installed() {
    venv_works && [ "$(cat "$VENV/.installed-$1" 2>/dev/null)" = "$(stamp "$1")" ]
}

check_disk() {
    local needed_gb=$FULL_INSTALL_GB free_gb
    if venv_works && compgen -G "$VENV/.installed-*" >/dev/null; then needed_gb=$UPDATE_GB; fi
    free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free_gb" -ge "$needed_gb" ] || fail "$free_gb GB free in $PWD, the install needs $needed_gb: free some space"
}

pip_install() { # if it is killed, the marker file stays, and the next install starts from the beginning
    local extra=$1 python status=0
    if ! venv_works; then
        python=$(find_python)
        [ ! -e "$VENV" ] || echo "    $VENV is unfinished or was created for another folder: creating it again"
        "$python" -m venv --clear "$VENV"
    fi
    touch "$UNFINISHED"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "$PY" -m pip install -c constraints.txt -e ".[$extra]" |
        { grep -v '^Requirement already satisfied' || true; } || status=$?
    [ "$status" -gt 128 ] || rm "$UNFINISHED"
    [ "$status" -eq 0 ] || fail "pip could not install the packages (its reason is above); nothing else was changed"
    stamp "$extra" >"$VENV/.installed-$extra"
}

install() { # install demo|dev: .venv with the packages of that extra; dev includes demo
    local extra=$1 begun=$SECONDS
    exec 9<scripts # if two targets run at the same time, the second waits for the install of the first
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        echo "waiting for another install into $VENV"
        flock 9
    fi
    if is_installed "$extra" || { [ "$extra" = demo ] && is_installed dev; }; then
        printf '\n==> install: %s is complete, nothing to do\n' "$VENV"
    else
        check_disk
        step "install: Python packages into $VENV (3.5 GB of downloads, 7 GB on disk; 3 to 6 minutes the first time)" \
            pip_install "$extra"
        install_s=$((SECONDS - begun))
    fi
    exec 9<&-
}

fetch_weights() {
    step 'weights: Whisper tiny.en (75 MB, once; a minute)' "$PY" -m askd_ray fetch weights tiny.en
}

fetch_speech() {
    step 'speech: IVR prompts, 24 minutes of one voice (11 MB, once; a minute)' "$PY" -m askd_ray fetch speech ivr
}

demo() {
    local speech=()
    if [ -n "${SPEECH:-}" ]; then
        [ -d "$SPEECH" ] || fail "SPEECH=$SPEECH: no such folder"
        speech=(--speech "$SPEECH")
    fi
    install demo
    fetch_weights
    [ -n "${SPEECH:-}" ] || fetch_speech
    export ASKD_INSTALL_S=$install_s
    step 'demo: prepare, label, tune, distill, export, evaluate, serve (up to 15 minutes on two cores)' \
        "$PY" -m askd_ray demo "${speech[@]}"
}

run_tests() { # run_tests 'description and duration' OPTION...
    install dev
    fetch_weights
    fetch_speech
    step "$1" "$PY" -m pytest "${@:2}"
}

lint() { # the same commands as in .pre-commit-config.yaml
    install dev
    step 'lint: ruff check' "$PY" -m ruff check .
    step 'lint: ruff format' "$PY" -m ruff format --check .
    step 'lint: pyright (a minute)' env PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$PY" -m pyright
}

docs() {
    install dev
    step 'docs: is docs/recipe.md current?' "$PY" scripts/recipe_page.py --check
    step 'docs: the site, into site/ (offline, strict)' env NO_MKDOCS_2_WARNING=1 "$PY" -m mkdocs build --strict --quiet
}

clean() {
    rm -rf "$VENV" askd_ray.egg-info build site .pytest_cache .ruff_cache .hypothesis
    find askd_ray jobs tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
    echo "removed $VENV and the tools' caches; runs/ and the downloads in ${ASKD_CACHE:-~/.cache/askd} stay"
}

case "${1:-}" in
demo) demo ;;
test) run_tests 'test: pytest (about 8 minutes on two cores)' ;;
test-all) run_tests 'test-all: pytest, all tests (about 50 minutes on two cores)' -m 'not gpu' ;;
lint) lint ;;
docs) docs ;;
setup) install dev ;;
clean) clean ;;
*) fail "no task '${1:-}': demo, test, test-all, lint, docs, setup, clean" ;;
esac
