"""Lightning callbacks that `build_trainer` adds to a run, one per module."""
