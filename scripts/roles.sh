#!/usr/bin/env bash
# Tests roles with Molecule: those that are named, or all. As many scenarios at a time as there are cores, since
# most of their time is waiting. Output goes to .cache/molecule/SCENARIO.log; that of a scenario that fails is also printed.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=.cache/molecule
mkdir -p "$logs"

scenario() {
    local log=$logs/$1.log
    SECONDS=0
    if .venv/bin/molecule test --scenario-name "$1" >"$log" 2>&1; then
        echo "ok $1 ${SECONDS} s"
    else
        cat "$log"
        echo "failed $1 ${SECONDS} s, see $log; in short:"
        grep -E -A2 'fatal: |stderr: |^[^a-z]*E  ' "$log" | cut -c1-600 | tail -16
        return 255 # xargs begins no other
    fi
}
export -f scenario
export logs

if [ $# -eq 0 ]; then
    mapfile -t all < <(find molecule -mindepth 2 -maxdepth 2 -name molecule.yml -printf '%h\n' | sed 's,.*/,,' | sort)
    set -- "${all[@]}"
fi

# The first starts Docker where it does not run, and makes the image that all boot from.
scenario base
printf '%s\n' "$@" | sed '/^base$/d' |
    xargs --no-run-if-empty --max-procs="$(nproc)" --replace bash -c 'scenario {}'
