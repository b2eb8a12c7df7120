"""Convert detectors to Core ML packages (.mlpackage), check them on any system, and run them on macOS."""
