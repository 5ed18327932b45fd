#!/bin/sh
# Runs the model beside this file:
#
#   ./run.sh -p "Once upon a time"      generates text; --help lists the options
#   ./run.sh bench -p 128               or another command: chat, serve, bench, eval, inspect, verify
#   ./run.sh doctor                     what this device has
#
# PYTHON is the interpreter (python3), which may be a command with arguments. SITE is the folder for the packages (site,
# beside this file); they are put there when it is not yet there.
set -eu

file=$(readlink -f -- "$0" 2>/dev/null || echo "$0") # where a link to this file leads
here=$(CDPATH='' cd -- "$(dirname -- "$file")" && pwd)
python=${PYTHON:-python3}
site=${SITE:-$here/site}

# shellcheck disable=SC2086 # $python may have arguments
[ "$(cat "$here/package.json")" = "$(cat "$site/package.json" 2>/dev/null)" ] || $python "$here/install.py" "$site"

case ${1-} in
generate | chat | serve | bench | eval | inspect | verify)
    command=$1
    shift
    set -- "$command" "$here/model" "$@"
    ;;
doctor) ;;
*) set -- generate "$here/model" "$@" ;;
esac
PYTHONPATH=$site PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
# shellcheck disable=SC2086
exec $python -s -m dsv3c.runtime "$@"
