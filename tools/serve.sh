#!/usr/bin/env bash
# serve.sh: one router and two groups of two ranks on this machine until Ctrl-C. tools/system.sh has the
# ports and the variables that change them.
set -u
cd "$(dirname "$0")/.."
source tools/system.sh

trap 'exit 0' INT TERM
trap stop_system EXIT
start_system
wait_until_ready
cat >&2 <<EOF
serving $MODEL on $HOST:$ROUTER_PORT   admin $HOST:$ADMIN_PORT   metrics http://$HOST:$ROUTER_METRICS_PORT/metrics
  $BIN/bough generate "Once upon a time"     $BIN/bough chat     $BIN/bough top
Ctrl-C stops everything; logs: $LOGS
EOF
while :; do
  check_alive
  sleep 1 &
  wait $!
done
