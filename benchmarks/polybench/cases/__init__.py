"""Sizes, initial data and costs of the benchmarks, a file for each of PolyBench's groups."""
