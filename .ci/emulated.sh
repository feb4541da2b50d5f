#!/usr/bin/env bash
# The golden hashes on emulated processors: x86-64 without AVX, with AVX2, AMD's, and aarch64. Run through `make test-emulated`.
# Needs qemu-x86_64, qemu-aarch64 and aarch64-linux-gnu-g++ (Debian: qemu-user, g++-aarch64-linux-gnu).
set -euo pipefail
cd "$(dirname "$0")/.."

build() { # FOLDER [CMAKE_ARGUMENT...]
  cmake -G Ninja -S . -B "$@" -DDETCONV_PYTHON=OFF >/dev/null
  cmake --build "$1"
}

golden=$(grep -hv '^#' tests/golden/*.txt | sort)

compare() { # NAME INSTRUCTION_SET COMMAND...
  local name=$1 expected=$2 start=$SECONDS chosen
  shift 2
  # qemu lists on stderr what it leaves out of a processor; none of it is arithmetic.
  chosen=$("$@" --instruction-set 2>/dev/null)
  if [ "$chosen" != "$expected" ]; then
    echo "$name: runs $chosen, not $expected" >&2
    exit 1
  fi
  if ! diff <(echo "$golden") <("$@" --golden 2> >(grep -v "TCG doesn't support" >&2) | sort); then
    echo "$name: not the golden hashes (<: golden, >: computed)" >&2
    exit 1
  fi
  echo "$name ($chosen): $(wc -l <<<"$golden") golden hashes equal, $((SECONDS - start)) s"
}

x86=build/emulated-x86_64
arm=build/emulated-aarch64
build $x86
build $arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

compare Nehalem baseline qemu-x86_64 -cpu Nehalem $x86/detconv_selftest
compare Haswell avx2 qemu-x86_64 -cpu Haswell $x86/detconv_selftest
compare EPYC avx2 qemu-x86_64 -cpu EPYC $x86/detconv_selftest
compare aarch64 neon qemu-aarch64 -L /usr/aarch64-linux-gnu $arm/detconv_selftest
