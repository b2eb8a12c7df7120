"""Convert detectors to ExecuTorch programs (.pte) for XNNPACK, and run them on the CPU."""
