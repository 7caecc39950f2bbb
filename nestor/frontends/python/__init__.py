"""Loop kernels written in Python: a function's source → ``Program``.

``parse_kernel`` reads a function of a small language: ``for`` over ``range`` with affine bounds,
assignments to array elements and scalars, ``if``, arithmetic, functions of ``math`` and NumPy,
calls of other kernels. Its meaning is Python's, with arithmetic in the arrays' types:

* a number that Python made (a literal, an index, a size) takes the type of what it meets, two typed
  operands are promoted as NumPy does, and a scalar has one type, which holds all that is assigned;
* ``min`` and ``max`` give NaN if an operand is NaN; functions of ``math`` work in the operand's
  type; ``x**2`` is ``x*x``; integer division by zero gives 0;
* a constant negative index counts from the end; any other index must lie inside the array;
* under an ``if`` on data everything is evaluated, but only what holds is stored: loads in it must
  be inside their arrays in any case (indices that are themselves data are replaced by 0).
"""

from __future__ import annotations

from nestor.frontends.python.parameters import Parameter
from nestor.frontends.python.parsing import ParsedKernel, parse_kernel

__all__ = ["Parameter", "ParsedKernel", "parse_kernel"]
