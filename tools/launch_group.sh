#!/usr/bin/env bash
# launch_group.sh RANKS PROGRAM [FLAG...]: runs one worker group on this machine and keeps it running.
#
#   exit of the group        what happens
#   0                        exit 0
#   1  (start-up error)      exit 1; a restart would not help
#   else, or a signal        restart after 0.1, 0.5, 2, 10, 10 s; the fifth death in a row within 60 s of
#                            its start is a crash loop: exit 70
#   SIGTERM, SIGINT to us    the group drains (rank 0's --drain-timeout); a second one: at once; exit 0
set -u

say() { echo "launch_group: $*" >&2; }
fail() { say "$*"; exit 1; }

(( $# >= 2 )) || fail "usage: launch_group.sh RANKS PROGRAM [FLAG...]"
ranks=$1 program=$2
shift 2

preflight() {
  [[ $ranks =~ ^[1-9][0-9]{0,2}$ ]] || fail "RANKS: must be in [1, 999], is '$ranks'"
  [[ -x $program ]] || fail "$program: no such program; fix: make build"
  command -v mpirun >/dev/null || fail "mpirun: not installed; fix: make setup"
  local previous="" flag model="" device="cpu"
  for flag in "$@"; do
    case $previous in --model) model=$flag ;; --device) device=$flag ;; esac
    case $flag in --model=*) model=${flag#*=} ;; --device=*) device=${flag#*=} ;; esac
    previous=$flag
  done
  [[ -z $model || -d $model ]] || fail "$model: no such folder; fix: give --model a Hugging Face folder"
  # Ranks of one host meet in /dev/shm; NCCL takes far more of it than MPI.
  local need_mib=$(( ranks * 16 )) have_mib
  [[ $device == cuda ]] && need_mib=$(( ranks * 256 ))
  have_mib=$(( $(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $4}') / 1024 ))
  (( have_mib >= need_mib )) || fail "/dev/shm: $have_mib MiB free, $ranks ranks need $need_mib;" \
    "fix: mount -o remount,size=$(( need_mib * 2 ))m /dev/shm (docker: --shm-size)"
}

stops=0
pid=""
on_stop() {
  stops=$(( stops + 1 ))
  # mpirun hands SIGUSR1 on to the ranks; a SIGTERM it would turn into the group's death.
  [[ -z $pid ]] || kill -USR1 "$pid" 2>/dev/null
}

# Waits for the group; sets `code`. Once asked to stop, does not wait longer than the drain can take.
wait_for_group() {
  wait "$pid"
  code=$?
  local waited=0
  while kill -0 "$pid" 2>/dev/null; do
    (( waited == 600 )) && kill -TERM "$pid" 2>/dev/null
    (( waited == 650 )) && kill -KILL "$pid" 2>/dev/null
    waited=$(( waited + 1 ))
    sleep 0.1
  done
}

preflight "$@"
trap on_stop TERM INT
delays=(0.1 0.5 2 10)
deaths=0
command=("$(dirname "$0")/mpirun.sh" "$ranks" "$program" "$@")
say "${command[*]}"
while :; do
  started=$SECONDS
  # In a session of its own, so that a terminal's Ctrl-C reaches us only; gone when we are gone.
  setsid setpriv --pdeathsig TERM "${command[@]}" &
  pid=$!
  wait_for_group
  pid=""
  (( stops > 0 )) && exit 0
  case $code in
    0) exit 0 ;;
    1) say "the group could not start; not tried again"; exit 1 ;;
  esac
  (( SECONDS - started >= 60 )) && deaths=0
  deaths=$(( deaths + 1 ))
  if (( deaths == 5 )); then
    say "exit code $code; fifth death in a row, giving up"
    exit 70
  fi
  delay=${delays[deaths - 1]}
  say "exit code $code; restart in $delay s"
  sleep "$delay" &
  wait $!
  (( stops > 0 )) && exit 0
done
