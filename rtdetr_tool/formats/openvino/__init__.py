"""OpenVINO files (.xml with .bin), converted from the ONNX graph and run with OpenVINO on the CPU."""
