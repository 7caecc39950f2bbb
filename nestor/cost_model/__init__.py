"""Predict how fast a scheduled kernel runs, without running it.

``features`` turns a kernel and its schedule into numbers, ``trees`` evaluates trained ensembles on
them, ``dataset`` keeps what was measured, ``training`` fits new ensembles, and ``workloads`` makes
kernels to measure. Only ``training`` needs xgboost; nothing here needs torch or LLVM.
"""
