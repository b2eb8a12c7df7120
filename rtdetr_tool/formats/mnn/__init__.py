"""Convert detectors to MNN files (.mnn) from their ONNX graph, and run them on the CPU."""
