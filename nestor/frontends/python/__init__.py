"""Loop kernels written in Python: a function's source → ``Program``.

``parse_kernel`` reads a function of a small language; nothing of it runs but its annotations.

* **Parameters**: arrays (``nestor.f64["N", "2*M + 1"]``), numbers (``nestor.f64``, ``float``) and
  ``int``: a size or loop bound, at least 0. Names of sizes can be used like ``int`` parameters.
* **Statements**: ``for`` over ``range`` (affine bounds of indices and sizes, with ``min``, ``max``,
  ``//`` and ``%`` by constants; a constant step), ``if``, assignments to array elements and
  scalars, ``x: nestor.f32 = …`` (a scalar of that type), local arrays (``nestor.zeros``,
  ``nestor.empty``), calls of other kernels (inlined; ``A[i]`` passes a row).
* **Expressions**: arithmetic, comparisons, ``and or not``, ``a if c else b``, array elements (an
  index may be data), ``A.shape[k]``, ``len(A)``, functions of ``math`` and NumPy, conversions such
  as ``nestor.f32(x)``, and global numbers, whose values are read at decoration.

The meaning is Python's, with arithmetic in the arrays' types:

* a number that Python made (a literal, an index, a size) takes the type of what it meets, two typed
  operands are promoted as NumPy does, and a scalar has one type, which holds all that is assigned;
* ``min`` and ``max`` give NaN if an operand is NaN; functions of ``math`` work in the operand's
  type; ``x**2`` is ``x*x``; integer division by zero gives 0;
* a constant negative index counts from the end; any other index must lie inside the array;
* under an ``if`` on data everything is evaluated, but only what holds is stored: loads in it must
  be inside their arrays in any case (indices that are themselves data are replaced by 0). Under
  an affine ``if`` they need to be only where it holds.

How: ``body`` turns statements into nodes (``tree``), ``scalars``, ``predication`` and ``residence``
decide where scalars live, ``program`` writes pointwise statements in the order of the source.
"""

from __future__ import annotations

from nestor.frontends.python.parameters import Parameter
from nestor.frontends.python.parsing import ParsedKernel, parse_kernel

__all__ = ["Parameter", "ParsedKernel", "parse_kernel"]
