"""From a static graph to steps: layouts, fusion groups, kernels, buffers.

A plan is a pure function of the graph and the instruction set; threads and machine state
play no part, and no choice made here changes a bit of any result.
"""
