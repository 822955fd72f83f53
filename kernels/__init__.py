"""Fused operations, one folder each; imported as `fasttrain.kernels` alone."""

if __name__ != "fasttrain.kernels":
    raise ImportError("import fasttrain.kernels: the top-level name 'kernels' is PyPI's, not this project's")
