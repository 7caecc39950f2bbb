"""PolyBench/C 4.2.1 as kernels written in Python; ``python -m benchmarks.polybench`` times them."""
