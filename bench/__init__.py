"""Speed, error and bits of detconv beside torch, NumPy and ONNX Runtime: ``python -m bench``.

See bench/README.md for how to run it and how to read what it writes.
"""
