"""Triton source for NVIDIA GPUs from loop nests.

A nest for a GPU has *grid* loops outside, whose iterations are programs; *serial* loops in them;
and innermost *vector* and *unroll* loops, which together are a tile: a block value with one
dimension for each of them, in the order of the loops. Unrolled loops run over reduced indices, and
the block is reduced along them.
"""

from nestor.codegen.triton.kernel import ALONE, CODEGEN_VERSION, Siblings, TritonKernel, emit_kernel

__all__ = ["ALONE", "CODEGEN_VERSION", "Siblings", "TritonKernel", "emit_kernel"]
