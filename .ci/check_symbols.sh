#!/usr/bin/env bash
# The kernels of one instruction set may define symbols only in their own namespace, detconv::<isa>. Anything else (an inline
# function of the standard library, say) would exist once for each instruction set, and the linker could keep the AVX-512 copy
# for the processors without it.   Usage: check_symbols.sh BUILD_FOLDER
set -euo pipefail

checked=0
for object in "$1"/csrc/detconv/CMakeFiles/kernels_*.dir/kernels.cpp.o; do
  isa=${object#*kernels_} isa=${isa%%.dir/*}
  own="^_Z(GV|TV|TT|TI|TS)?Z?NK?[RO]?7detconv${#isa}${isa}"
  # DW.ref.__gxx_personality_v0 is the compiler's pointer to the exception handler: data, the same in every object.
  strangers=$(nm --defined-only --extern-only "$object" | awk '{print $NF}' | grep -vE "$own|^DW\.ref\.__gxx_personality_v0$" || true)
  if [ -n "$strangers" ]; then
    echo "$object defines symbols outside detconv::$isa:" >&2
    c++filt <<<"$strangers" | sed 's/^/  /' >&2
    exit 1
  fi
  defined=$(nm --defined-only --extern-only "$object" | grep -cE " _Z" || true)
  [ "$defined" -gt 0 ] || { echo "$object defines nothing: the wrong file?" >&2; exit 1; }
  echo "$isa: $defined symbols, all in detconv::$isa"
  checked=$((checked + 1))
done
[ "$checked" -ge 2 ] || { echo "only $checked instruction sets found in $1" >&2; exit 1; }
