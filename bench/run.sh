#!/usr/bin/env bash
# Measures what a call costs and how many the agent takes, prints the tables, and writes them into docs/benchmark.md.
# ROUNDS= and SECONDS_OF_LOAD= change how long it takes; DOCUMENT= (empty) leaves the document alone.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
document=${DOCUMENT-docs/benchmark.md}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bin/prov4ml-agent run --plain --out "$work/calls" -- \
  "$python" bench/calls.py --rounds "${ROUNDS:-7}" --result "$work/calls.json" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
bin/prov4ml-agent run --plain --out "$work/load" -- \
  "$python" bench/load.py --seconds "${SECONDS_OF_LOAD:-5}" --traces "$work/load/traces.jsonl" --result "$work/load.json" \
  >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$python" bench/table.py --calls "$work/calls.json" --load "$work/load.json" --traces "$work/calls/traces.jsonl" \
  ${document:+--document "$document"}
