#!/usr/bin/env bash
# Measures what it costs to know the FLOPs of every step, prints the table, and writes it into docs/benchmark.md.
# ROUNDS= changes how long it takes; DOCUMENT= (empty) leaves the document alone; COUNTERS= is a folder with fvcore, where
# PYTHON has none (pip install --target).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 PYTHONPATH=${COUNTERS:-}

bin/prov4ml-agent run --plain --out "$work/run" -- \
  "$python" bench/flops_step.py --rounds "${ROUNDS:-5}" --result "$work/measured.json" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
document=${DOCUMENT-docs/benchmark.md}
"$python" bench/flops_table.py --measured "$work/measured.json" --traces "$work/run/traces.jsonl" ${document:+--document "$document"}
