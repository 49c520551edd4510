#!/bin/sh
# Make a Python environment of this project, with all it needs, and (again) the project itself in it.
#   deploy/environment.sh NAME EXTRAS [REQUIREMENT ...]   ->  .venv/NAME
# Run from the root of the repository. Installs what Debian splits off from Python where it is missing and we are root.
set -eu
name=$1 extras=$2
shift 2
folder=.venv/$name
python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}

need() { # need COMMAND_THAT_FAILS_WITHOUT_IT PACKAGE
    if ! sh -c "$1" >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "missing: install the package $2" >&2; exit 1; }
        echo "installing $2"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
    fi
}

[ -n "$python" ] || need 'command -v python3' python3
python=${python:-python3}
if [ ! -x "$folder/bin/pip" ]; then
    need "$python -c 'import ensurepip, venv'" python3-venv
    "$python" -m venv "$folder"
fi
# What was asked for is remembered, so that a second run installs nothing again.
asked="$extras $* $(cksum setup.cfg)"
if [ "$(cat "$folder/asked" 2>/dev/null)" != "$asked" ]; then
    echo "installing the $name environment (some minutes the first time)"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" "$@"
    echo "$asked" >"$folder/asked"
else
    # The strict editable mode is a tree of links: made again, so that new files are in it.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable .
fi
