"""Rounding or mistake? The verdict on an output of a convolution, with proof; see ``detconv.judge``."""
