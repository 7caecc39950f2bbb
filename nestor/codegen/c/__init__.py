"""Programs as C: the nest as it was written, for compilers to compare with and for people to read.

Nothing of a schedule reaches this code; ``codegen/llvm`` prints what was transformed.
"""

from nestor.codegen.c.function import print_c

__all__ = ["print_c"]
