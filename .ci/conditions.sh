#!/usr/bin/env bash
# The tests marked `machine` where machines differ: one processor, two that are busy, older instruction sets, other libraries'
# choices of code, many threads, a narrow terminal, no home, a folder with a space and letters beyond ASCII.
# Usage: conditions.sh [CONDITION [PYTEST_ARGUMENT...]]     without arguments: every condition;  through make: make test-machines
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
folder="$root/build/other földer"

older() { # one processor, and everything held to the oldest code that it has
  OPENBLAS_CORETYPE=Nehalem DETCONV_ISA=baseline OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default \
    NPY_DISABLE_CPU_FEATURES=$(features_of_numpy) LANG=C COLUMNS=40 HOME=/nonexistent \
    tests_on_one_processor "$@"
}

tests_on_one_processor() {
  if command -v taskset >/dev/null; then taskset -c "$(first_processor)" python -m pytest "$@"; else python -m pytest "$@"; fi
}

first_processor() {
  python -c 'import os; print(min(os.sched_getaffinity(0)))'
}

# What NumPy chooses at run time on this processor. Not all of NumPy's names: it warns of those that the processor lacks.
features_of_numpy() {
  python -c '
import contextlib, io, numpy
with contextlib.redirect_stdout(io.StringIO()):
    found = numpy.show_config(mode="dicts") or {}
print(" ".join(found.get("SIMD Extensions", {}).get("found", [])))'
}

busy() { # two programs that never wait, more threads than processors, a middle-aged instruction set
  local idle=$BASHPID loops=()
  for _ in 1 2; do
    (while kill -0 "$idle" 2>/dev/null; do for _ in {1..100000}; do :; done; done) &
    loops+=($!)
  done
  # shellcheck disable=SC2064  # the loops of now
  trap "kill ${loops[*]} 2>/dev/null || true" EXIT
  OPENBLAS_CORETYPE=$(second_oldest_kernels) DETCONV_ISA=$(python -c '
import detconv
print(detconv.build_info()["instruction_sets_usable"][-2:][0])') OMP_NUM_THREADS=7 python -m pytest "$@"
}

# OpenBLAS does not ask whether the processor has what a kernel needs: those of Haswell end a process on an older one.
second_oldest_kernels() {
  if grep -qs avx2 /proc/cpuinfo; then echo Haswell; else echo Nehalem; fi
}

elsewhere() { # the tests and the packages, torch among them, under a path that compilers and shells trip over
  rm -rf "$folder"
  mkdir -p "$folder/témp"
  local name
  for name in .venv README.md bench docs examples pyproject.toml python tests; do
    ln -s "$root/$name" "$folder/$name"
  done
  (cd "$folder" && PATH="$folder/.venv/bin:$PATH" TMPDIR="$folder/témp" python -m pytest -p no:cacheprovider "$@")
}

conditions=(older busy elsewhere)
if [ $# -gt 0 ]; then
  conditions=("$1")
  shift
fi
for condition in "${conditions[@]}"; do
  case $condition in
    older | busy | elsewhere) ;;
    *) echo "no such condition: $condition; there are: older busy elsewhere" >&2; exit 2 ;;
  esac
  start=$SECONDS
  printf '\n== %s\n' "$condition"
  ("$condition" -q -m machine "$@")
  printf -- '-- %s: %d s\n' "$condition" $((SECONDS - start))
done
