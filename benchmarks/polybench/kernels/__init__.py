"""The 30 kernels of PolyBench/C 4.2.1 as Python functions, a file for each of its groups.

Each keeps the algorithm and the loop order of the C program. ``real`` in an annotation is the
element type that a benchmark is asked in (float64 unless said otherwise); names in brackets are
sizes, which the body may use.

Source of the algorithms: L.-N. Pouchet and T. Yuki, PolyBench/C 4.2.1 (2016).
"""
