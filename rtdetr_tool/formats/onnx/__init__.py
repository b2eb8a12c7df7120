"""ONNX: the file, tracing and simplifying a graph, and running it in onnxruntime."""
