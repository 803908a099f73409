#!/usr/bin/env bash
# Proves that requirements-tpu.txt and requirements-tpu-nodeps.txt make an environment that imports; no TPU is needed.
set -euo pipefail

usage() {
    cat <<'END'
Usage: scripts/check_tpu_environment.sh [FOLDER]

Makes a fresh virtual environment in FOLDER (default: a temporary one, removed at the end), installs
requirements-tpu.txt, requirements-tpu-nodeps.txt and the project, and runs
scripts/check_environment.py --tpu in it. About 2 GB and a few minutes.

The Python is $PYTHON (default python3): 3.10, 3.11 or 3.12.
END
}

fail() {
    echo "ERROR: $*" >&2
    exit 2
}

case "${1-}" in
-h | --help)
    usage
    exit 0
    ;;
-*) fail "unknown flag $1. See: scripts/check_tpu_environment.sh --help" ;;
esac
[ $# -le 1 ] || fail "at most one argument (FOLDER) is taken, got $#: $*"

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1) ||
    fail "PYTHON=$python doesn't run: $version. Set PYTHON to a Python 3.10, 3.11 or 3.12."
case "$version" in
3.10 | 3.11 | 3.12) ;;
*) fail "tensorflow-tpu has wheels for Python 3.10, 3.11 and 3.12, but $python is $version. Set PYTHON to another." ;;
esac

if [ $# -eq 1 ]; then
    folder=$1
    [ -z "$(ls -A "$folder" 2>/dev/null)" ] ||
        fail "FOLDER must be new or empty, so that only the requirements are tested, but $folder isn't. Remove it or choose another."
    [ ! -e "$folder" ] || [ -d "$folder" ] || fail "FOLDER must be a folder, but $folder is a file. Choose another."
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

"$python" -m venv --upgrade-deps "$folder"
"$folder/bin/pip" install --quiet -r requirements-tpu.txt
"$folder/bin/pip" install --quiet --no-deps -r requirements-tpu-nodeps.txt
"$folder/bin/pip" install --quiet --no-deps -e .
"$folder/bin/python" scripts/check_environment.py --tpu
