#!/usr/bin/env bash
# Logs for the shell itself, from a shell script: no Python, only curl.
# "subject": "PARENT" means the process that started curl, which is this shell; the agent asks the kernel who that is.
#   prov4ml-agent run -- examples/shell.sh
set -euo pipefail
socket=${PROV4ML_AGENT_SOCKET:-/run/prov4ml/agent.sock}

log() { # log CONTEXT STEP
  curl --silent --show-error --fail-with-body --unix-socket "$socket" -H 'Content-Type: application/json' \
    -d "{\"context\":\"$1\",\"step\":\"$2\",\"subject\":\"PARENT\"}" \
    http://agent/prov4ml.v1.AgentService/LogSystemMetrics
  echo
}

file=$(mktemp ./prov4ml-shell.XXXXXX)
trap 'rm -f "$file"' EXIT
log preparation 0
for step in 1 2 3; do
  dd if=/dev/zero of="$file" bs=1M count=$((4 * step)) conv=fsync status=none # 4, 8, 12 MiB that reach the disk
  log TRAINING "$step"
done
