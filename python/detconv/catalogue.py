"""Summation orders known to be in use, for the layer of ``detconv demo``: 16 input channels and a kernel of 5 x 5.

An output of that layer has 400 terms, numbered in the loops c,kh,kw: a step in kw is +1, in kh +5, in c +25. Each
order below was found in the code that it names, by comparing all bits of the output.
"""

from __future__ import annotations

from itertools import permutations, product
from typing import NamedTuple


class KnownOrder(NamedTuple):
    summation: str
    found_in: str


_FOUND = [
    KnownOrder("naive products=rounded", "the textbook's loops; OpenBLAS for SSE4"),
    KnownOrder("naive", "OpenBLAS for AVX-512"),
    KnownOrder("naive order=kh,kw,c", "torch with oneDNN, AVX-512"),
    KnownOrder('naive order="bias 2x(+200){25x(+1){8x(+25){f0}}}"', "torch with oneDNN, AVX2: 8 channels at a time"),
    KnownOrder('naive order="bias 2x(+200){25x(+1){8x(+25){m0}}}"', "torch with oneDNN, below AVX2"),
    KnownOrder('naive order="192x(+1){f0} bias [192x(+1){f192}] [16x(+1){f384}]"', "torch without oneDNN: MKL"),
    KnownOrder('naive order="200x(+1){f0} [200x(+1){f200}] bias"', "OpenBLAS for AVX2, most outputs"),
    KnownOrder('naive order="200x(+1){m0} [200x(+1){m200}] bias"', "OpenBLAS for AVX"),
    KnownOrder('naive order="80x(+5){[m0 m4 m1 [m2 m3]]} bias"', "NumPy's einsum, vectors of four"),
]

# Any nest of the three loops, as one may write it in C, with or without a compiler that fuses.
_LOOPS = [
    KnownOrder(f"naive order={','.join(loops)} products={products} bias={bias}", "a nest of loops")
    for loops, products, bias in product(permutations(("c", "kh", "kw")), ("fused", "rounded"), ("last", "first"))
]

KNOWN_ORDERS: tuple[KnownOrder, ...] = (*_FOUND, *_LOOPS)
