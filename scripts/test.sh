#!/usr/bin/env bash
# Makes a virtual environment, installs what the tests need, and runs the checks and the tests.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/test.sh [--oldest] [--slow] [PYTEST ARGUMENT ...]

  --oldest   with the oldest versions that requirements.txt admits, not the newest
  --slow     the tests that take minutes as well

The environment is kept in .venv-test (.venv-test-oldest), so that a second call is quick.
PYTHON names the interpreter that makes it (default: python3).
END
}

cd "$(dirname "$0")/.."
environment=.venv-test
oldest=
marker=(-m "not slow")
while [ $# -gt 0 ]; do
  case $1 in
    --oldest) oldest=1 environment=.venv-test-oldest ;;
    --slow) marker=() ;;
    -h | --help) usage && exit ;;
    *) break ;;
  esac
  shift
done

[ -x "$environment/bin/pip" ] || "${PYTHON:-python3}" -m venv "$environment"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
if [ "$oldest" ]; then
  # "name>=1.2,<2" becomes "name==1.2"
  sed -nE 's/^([A-Za-z-]+)>=([^,]+).*/\1==\2/p' requirements.txt > "$constraints"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$environment/bin/pip" install --quiet --requirement requirements-dev.txt --constraint "$constraints"

"$environment/bin/ruff" check .
"$environment/bin/ruff" format --check .
# Two processes. Each takes whole files as far as it goes, since their tests share models and runs.
"$environment/bin/python" -m pytest -n 2 --dist worksteal ${marker[@]+"${marker[@]}"} "$@"
