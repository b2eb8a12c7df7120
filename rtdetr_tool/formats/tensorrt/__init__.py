"""TensorRT and TensorRT-RTX: engines with a JSON file next to them, building and running them."""
