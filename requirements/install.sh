#!/bin/sh
# Install one hash-locked set into .venv, then the project itself (editable).
# Usage: sh requirements/install.sh demo|test      PYTHON=python3.12 chooses the interpreter.
# Shows one counter line; says nothing else unless something goes wrong.
set -eu
cd "$(dirname "$0")/.."
set_name=$1
lock=requirements/$set_name.lock
enough='import sys; sys.exit(sys.version_info < (3, 11))'

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c "$enough" 2>/dev/null; then
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c "$enough" 2>/dev/null; then python=$candidate && break; fi
    done
    if [ -z "$python" ]; then
        echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3 if it is not on the PATH." >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "Creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
total=$(grep -c '==' "$lock")
echo "Installing up to $total packages from $lock"
counter() { # one moving line on a terminal, a line for every 25 packages elsewhere
    done_count=0
    while read -r word name _; do
        case $word in
        Collecting | Requirement) done_count=$((done_count + 1)) ;;
        Installing) if [ -t 1 ]; then printf '\r\033[K  unpacking'; else echo "  unpacking"; fi; continue ;;
        *) continue ;;
        esac
        if [ -t 1 ]; then
            printf '\r\033[K  %d/%d %s' "$done_count" "$total" "${name%%[=;]*}"
        elif [ $((done_count % 25)) -eq 0 ]; then
            echo "  $done_count/$total"
        fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}
status=.venv/.install-status
{
    code=0
    .venv/bin/pip install --progress-bar off --require-hashes --no-deps -r "$lock" \
        2>.venv/install.log || code=$?
    echo "$code" >"$status"
} | counter
if [ "$(cat "$status")" != 0 ]; then
    grep -v '^WARNING' .venv/install.log >&2 || true
    exit 1
fi
.venv/bin/pip install --quiet --no-deps --no-build-isolation -e . 2>.venv/install.log || {
    cat .venv/install.log >&2
    exit 1
}
touch ".venv/.$set_name"
