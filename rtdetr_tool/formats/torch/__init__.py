"""PyTorch weights: checkpoints of this package and of the programs that `checkpoints` supports."""
