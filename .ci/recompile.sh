#!/usr/bin/env bash
# After one source has changed, `pip install .` compiles that one again, in an isolated environment too.
set -euo pipefail
cd "$(dirname "$0")/.."

log=build/recompile.log
build() {
  python -m pip wheel --verbose --no-deps --wheel-dir build/recompile . >$log 2>&1 || { tail -30 $log; exit 1; }
}

build # another CMake than that of the last build, which tools may have brought since, compiles everything once
source=csrc/detconv/narrow.cpp
before=$(mktemp)
touch -r $source "$before"
touch $source
build
touch -r "$before" $source
rm "$before"
compiled=$(grep -c 'Building CXX object' $log || true)
if [ "$compiled" != 1 ]; then
  echo "one source was touched, and $compiled were compiled; see $log" >&2
  exit 1
fi
echo "one source was touched, and one was compiled"
