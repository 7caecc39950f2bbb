"""Time several ways of running one model, fairly.

One process a peer, strict turns (A B A B …), a pause to settle before each, and the median of
paired ratios: machines drift by a factor of two within minutes, so only ratios taken in the same
seconds mean anything.
"""
