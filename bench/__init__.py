"""Benchmarks of fasttrain: `python -m bench <command>`, run from the repository root."""
