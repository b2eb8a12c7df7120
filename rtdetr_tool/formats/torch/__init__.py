"""PyTorch: running a detector, with linear layers packed for CPUs or as a trace."""
