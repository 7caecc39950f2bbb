"""The element type of the kernels' annotations."""

import nestor

real = nestor.f64
"""PolyBench's DATA_TYPE; ``registry.kernel`` reads the annotations anew with another one."""
