#!/usr/bin/env bash
# The golden hashes on emulated processors: x86-64 without AVX, with AVX2, AMD's, and aarch64. Run through `make test-emulated`.
# Needs qemu-x86_64, qemu-aarch64 and aarch64-linux-gnu-g++ (Debian: qemu-user, g++-aarch64-linux-gnu).
set -euo pipefail
cd "$(dirname "$0")/.."

build() { # FOLDER [CMAKE_ARGUMENT...]
  cmake -G Ninja -S . -B "$@" -DDETCONV_PYTHON=OFF >/dev/null
  cmake --build "$1"
}

check() { # PROCESSOR INSTRUCTION_SET COMMAND...
  local processor=$1 expected=$2 start=$SECONDS chosen
  shift 2
  # qemu lists on stderr what it leaves out of a processor; none of it is arithmetic.
  chosen=$("$@" --instruction-set 2>/dev/null)
  if [ "$chosen" != "$expected" ]; then
    echo "$processor: runs $chosen, not $expected" >&2
    exit 1
  fi
  local file
  for file in tests/golden/*.txt; do "$@" --golden "$file" 2> >(grep -v "TCG doesn't support" >&2); done
  echo "$processor: $((SECONDS - start)) s"
}

x86=build/selftest
arm=build/selftest-aarch64
build $x86
build $arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
on_arm=(qemu-aarch64 -L /usr/aarch64-linux-gnu $arm/detconv_selftest)

check Nehalem baseline qemu-x86_64 -cpu Nehalem $x86/detconv_selftest
check Haswell avx2 qemu-x86_64 -cpu Haswell $x86/detconv_selftest
check EPYC avx2 qemu-x86_64 -cpu EPYC $x86/detconv_selftest
check aarch64 neon "${on_arm[@]}"
"${on_arm[@]}"  # all of the self-test, since no other step runs it on aarch64
