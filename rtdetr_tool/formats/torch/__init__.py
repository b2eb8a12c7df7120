"""Weights of PyTorch: checkpoints of this project and of the programs that `checkpoints` reads."""
