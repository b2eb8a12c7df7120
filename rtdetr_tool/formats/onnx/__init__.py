"""ONNX files, run with ONNX Runtime."""
