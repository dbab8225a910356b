#!/usr/bin/env bash
# Counts the same models with ours and with other counters, and writes the table into docs/flops.md.
# COUNTERS= is a folder with further packages (pip install --target); DOCUMENT= (empty) leaves the document alone.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1

PROV4ML_EXIT_SECONDS=300 bin/prov4ml-agent run --plain --out "$work/run" -- \
  "$python" bench/flops_compare.py measure prov4ml --result "$work/prov4ml.json" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for counter in flop_counter fvcore deepspeed calflops ptflops thop torchinfo; do
  # One that is not installed is left out of the table.
  PYTHONPATH=${COUNTERS:-} "$python" bench/flops_compare.py measure "$counter" --result "$work/$counter.json" >"$work/log" 2>&1 ||
    { echo "$counter is left out:"; tail -1 "$work/log"; }
done
document=${DOCUMENT-docs/flops.md}
"$python" bench/flops_compare.py table "$work" ${document:+--document "$document"}
