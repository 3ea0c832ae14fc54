"""Programs on a second device: the plan of the same graph as launches of CUDA kernels."""
