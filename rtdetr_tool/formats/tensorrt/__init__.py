"""Engines of TensorRT and TensorRT-RTX, built from ONNX files."""
