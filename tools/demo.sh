#!/usr/bin/env bash
# demo.sh [START]: shows the system at work and fails unless a shared prompt was really shared. START:
# seconds since the epoch at which the user began; the time to the first token counts from it.
set -u
cd "$(dirname "$0")/.."
source tools/system.sh

began=${1:-$(date +%s.%N)}
work=$(mktemp -d)
trap 'exit 130' INT TERM
trap 'stop_system; rm -rf "$work"' EXIT

# A context of several KV blocks, which both requests begin with.
context="The library stands at the end of the street, between the river and the old market. It was built \
when the town was rich, and it was kept when the town was poor. On the ground floor there are newspapers, \
maps and a long table where people read in silence. On the first floor there are histories, books of law \
and the works of philosophers. On the second floor there are stories and poems, and a window from which one \
can see the hills. The keeper of the library is an old woman who has read most of what is there. She says that \
a book is a letter to a person whom the writer will never meet, and that to read is to answer it. Every evening \
she walks through all the rooms, puts the books back in their places and turns out the lamps. One evening in the \
winter she found a page on the long table, written by hand, which she had never seen before."

# ask NAME ARGS...: streams the answer to stdout; what it cost goes to $work/NAME.
ask() {
  local name=$1
  shift
  "$BIN/bough" generate --server="$HOST:$ROUTER_PORT" "$@" 2>"$work/$name" && return
  cat "$work/$name" >&2
  fail "bough generate failed"
}

field() { grep -o "$2=[^ ]*" "$work/$1" | tail -n 1 | cut -d= -f2; }

# Copies stdin to stdout and notes when its first byte came.
note_first_byte() {
  local first
  IFS= read -r -n 1 -d '' first
  date +%s.%N >"$work/first_byte"
  printf '%s' "$first"
  cat
}

# A model of 20 M parameters repeats itself when nothing stops it.
style=(--temperature=0.4 --top-p=0.95 --repetition-penalty=1.2)

title() { printf '\n\n== %s\n' "$*"; }

start_system
wait_until_ready

title "A first answer"
printf '%s' "... ${context: -85}"
ask first --max-tokens=60 "${style[@]}" --seed=4 "$context" | note_first_byte
[[ ${PIPESTATUS[0]} == 0 ]] || exit 1
grep group= "$work/first"
seconds=$(awk -v a="$began" -v b="$(cat "$work/first_byte")" 'BEGIN {printf "%.1f", b - a}')

title "A second request that begins with the same text"
printf ' She read it twice and'
ask second --max-tokens=60 "${style[@]}" --seed=2 "$context She read it twice and"
grep group= "$work/second"

title "16 samples of one prompt"
ask samples --n=16 --max-tokens=24 "${style[@]}" --temperature=0.7 --seed=3 "$context On it"
grep group= "$work/samples"

cached=$(field second cached_tokens)
shared=$(field samples shared_blocks)
title "What was shared"
echo "first token               $seconds s after the start of make"
echo "second request            group $(field second group), cached tokens $cached of $(field second prompt_tokens)"
echo "16 samples of one prompt  group $(field samples group), shared KV blocks $shared of 64 tokens each"
(( ${cached:-0} > 0 )) || fail "the second request found nothing in the prefix cache"
(( ${shared:-0} > 0 )) || fail "the 16 samples shared no KV blocks"
