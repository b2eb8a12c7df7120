"""Lightning callbacks that `build_trainer` adds to every run, one per module."""
