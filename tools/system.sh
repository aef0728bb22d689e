# system.sh: starts and stops a whole system on this machine; sourced by serve.sh and demo.sh.
#
#   router   127.0.0.1:50051 (admin 50052, metrics 9090)
#   g0       2 ranks, TP=2     127.0.0.1:50061   metrics 9100, 9101
#   g1       2 ranks, EP=2     127.0.0.1:50062   metrics 9110, 9111
#
# With DEVICE=cuda a group is 1 rank on a GPU of its own, and a machine with one GPU has g0 alone.
# The variables below may be set by the caller. Every process writes out/logs/<name>.log.
: "${DEVICE:=cpu}" "${MODEL:=models/demo}" "${SERVED_MODEL_NAME:=demo}" "${HOST:=127.0.0.1}"
: "${ROUTER_PORT:=50051}" "${ADMIN_PORT:=50052}" "${ROUTER_METRICS_PORT:=9090}"
: "${G0_PORT:=50061}" "${G1_PORT:=50062}" "${G0_METRICS_PORT:=9100}" "${G1_METRICS_PORT:=9110}"
: "${BIN:=build/$DEVICE/bin}" "${LOGS:=out/logs}" "${READY_TIMEOUT:=600}"
: "${WORKER_FLAGS:=}" "${ROUTER_FLAGS:=}"

if [[ $DEVICE == cuda ]]; then
  : "${RANKS_PER_GROUP:=1}" "${NUM_GPUS:=$(nvidia-smi -L 2>/dev/null | wc -l)}"
  : "${NUM_GROUPS:=$(( NUM_GPUS < 2 * RANKS_PER_GROUP ? 1 : 2 ))}"
else
  : "${RANKS_PER_GROUP:=2}" "${NUM_GROUPS:=2}"
fi
pids=()   # of what we started, by name
names=()

say() { echo "$(basename "$0" .sh): $*" >&2; }
fail() { say "$*"; exit 1; }

port_answers() { (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }

# What would make the start fail, said before anything starts.
preflight() {
  local name file
  for name in ROUTER_PORT ADMIN_PORT ROUTER_METRICS_PORT G0_PORT G1_PORT G0_METRICS_PORT \
              G1_METRICS_PORT; do
    port_answers "${!name}" && fail "port ${!name} is taken; set $name to a free one"
  done
  for name in G0_METRICS_PORT G1_METRICS_PORT; do
    port_answers $(( ${!name} + 1 )) && fail "port $(( ${!name} + 1 )) is taken; move $name"
  done
  if [[ $DEVICE == cuda ]] && (( NUM_GPUS < NUM_GROUPS * RANKS_PER_GROUP )); then
    fail "$NUM_GROUPS groups of $RANKS_PER_GROUP ranks need $(( NUM_GROUPS * RANKS_PER_GROUP ))" \
      "GPUs, this machine has $NUM_GPUS; set NUM_GROUPS or RANKS_PER_GROUP"
  fi
  for name in bough-router bough-worker; do
    [[ -x $BIN/$name ]] || fail "$BIN/$name is not built; fix: make build"
  done
  for file in config.json tokenizer.model; do
    [[ -f $MODEL/$file ]] || fail "$MODEL/$file is missing; fix: set MODEL to a Hugging Face folder"
  done
}

# start NAME COMMAND...: in the background, out of reach of the terminal's Ctrl-C, and gone when this
# script is gone.
start() {
  local name=$1
  shift
  setsid setpriv --pdeathsig TERM "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  pids+=("$!")
  names+=("$name")
}

start_group() {  # INDEX PORT METRICS_PORT PARALLEL_FLAG
  local gpus
  gpus=$(seq -s, $(( $1 * RANKS_PER_GROUP )) $(( ($1 + 1) * RANKS_PER_GROUP - 1 )))
  # shellcheck disable=SC2086  # WORKER_FLAGS is a list of words
  CUDA_VISIBLE_DEVICES=$gpus start "g$1" tools/launch_group.sh "$RANKS_PER_GROUP" "$BIN/bough-worker" --model="$MODEL" \
    --group="g$1" --listen="$HOST:$2" --metrics-host="$HOST" --metrics-port="$3" "$4" \
    --device="$DEVICE" $WORKER_FLAGS
}

start_system() {
  preflight
  mkdir -p "$LOGS"
  local groups="g0=$HOST:$G0_PORT"
  start_group 0 "$G0_PORT" "$G0_METRICS_PORT" --tp-size="$RANKS_PER_GROUP"
  if (( NUM_GROUPS == 2 )); then
    groups+=",g1=$HOST:$G1_PORT"
    start_group 1 "$G1_PORT" "$G1_METRICS_PORT" --ep-size="$RANKS_PER_GROUP"
  fi
  # shellcheck disable=SC2086
  start router "$BIN/bough-router" --listen="$HOST:$ROUTER_PORT" \
    --admin-listen="$HOST:$ADMIN_PORT" --metrics-listen="$HOST:$ROUTER_METRICS_PORT" \
    --groups="$groups" --model="$MODEL" \
    --served-model-name="$SERVED_MODEL_NAME" $ROUTER_FLAGS
}

# metric PORT SERIES: the values of the metrics whose line starts so, one a line.
metric() {
  { exec 3<>"/dev/tcp/$HOST/$1"; } 2>/dev/null || return 0
  printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
  awk -v series="$2" 'index($0, series) == 1 {sub(/\r$/, ""); print $NF}' <&3
  exec 3>&-
}

loaded_percent() { metric "$1" bough_model_load_progress_ratio | awk '{s += $1} END {printf "%d", 100 * s / 2}'; }

progress() {
  local text="loading" group port rank
  for (( group = 0; group < NUM_GROUPS; ++group )); do
    port=G${group}_METRICS_PORT
    for (( rank = 0; rank < RANKS_PER_GROUP; ++rank )); do
      text+="  g$group/$rank $(loaded_percent $(( ${!port} + rank )))%"
    done
  done
  echo "$text"
}

# Fails when one of the processes has ended, with its last words.
check_alive() {
  local i
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    tail -n 3 "$LOGS/${names[i]}.log" >&2
    fail "${names[i]} ended; its log is $LOGS/${names[i]}.log"
  done
}

wait_until_ready() {
  local begin=$SECONDS shown=$SECONDS ready
  while :; do
    check_alive
    ready=$(metric "$ROUTER_METRICS_PORT" bough_groups_ready)
    [[ ${ready%.*} == "$NUM_GROUPS" ]] && break
    (( SECONDS - begin < READY_TIMEOUT )) || fail "not ready after $READY_TIMEOUT s; see $LOGS"
    if [[ -t 2 ]] && (( SECONDS - begin >= 2 )); then
      printf '\r%s' "$(progress)" >&2
      shown=-1
    elif [[ ! -t 2 ]] && (( SECONDS - shown >= 2 )); then
      say "$(progress)"
      shown=$SECONDS
    fi
    sleep 0.1
  done
  if (( shown == -1 )); then echo >&2; fi
}

# Router first, so that no request is sent to a group that leaves. A second Ctrl-C does not wait for
# running requests.
stop_system() {
  local i waited=0
  (( ${#pids[@]} > 0 )) || return
  say "stopping"
  trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
  for (( i = ${#pids[@]} - 1; i >= 0; --i )); do kill -TERM "${pids[i]}" 2>/dev/null; done
  for i in "${!pids[@]}"; do
    while kill -0 "${pids[i]}" 2>/dev/null && (( waited < 700 )); do
      sleep 0.1
      waited=$(( waited + 1 ))
    done
    kill -KILL "${pids[i]}" 2>/dev/null && say "${names[i]} did not stop and was killed"
  done
  pids=() names=()
}
