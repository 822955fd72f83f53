"""Fused operations, one folder each: `reference.py` is the specification. Imported as `fasttrain.kernels` alone."""

if __name__ != "fasttrain.kernels":
    raise ImportError("import fasttrain.kernels: the top-level name 'kernels' is PyPI's, not this project's")
