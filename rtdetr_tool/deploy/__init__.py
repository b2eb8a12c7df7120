"""From a detector to files that run elsewhere: ONNX graphs, TensorRT engines, DeepStream side files."""
