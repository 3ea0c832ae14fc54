"""A CUDA device on the CPU: the kernels' own text, compiled by g++, with a fibre for each thread of a block."""
