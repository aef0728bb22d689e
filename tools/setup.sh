#!/usr/bin/env bash
# setup.sh: the Debian 12 packages that building and testing need; installs what is missing, as root or
# through sudo. ccache is used when it is there, and nvcc too; neither is asked for.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  cmake ninja-build g++                                     # build
  libprotobuf-dev protobuf-compiler                         # link and API
  libgrpc++-dev libgrpc-dev protobuf-compiler-grpc libabsl-dev
  libopenmpi-dev openmpi-bin                                # ranks of a group
  prometheus-cpp-dev libspdlog-dev libfmt-dev               # metrics, logs
  nlohmann-json3-dev libxxhash-dev                          # JSON, block hashes
  libgtest-dev libgmock-dev python3-numpy                   # tests
)

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if (( ${#missing[@]} == 0 )); then
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "setup: needs Debian 12's packages: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if (( EUID != 0 )); then
  if ! command -v sudo >/dev/null; then
    echo "setup: run as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

mkdir -p out/logs
log=out/logs/setup.log
echo "setup: installing ${#missing[@]} packages and what they need ($log)" >&2
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
  tail -n 5 "$log" >&2
  echo "setup: apt-get failed; the whole of it is in $log" >&2
  exit 1
fi
