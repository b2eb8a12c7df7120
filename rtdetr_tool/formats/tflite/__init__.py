"""TFLite files, converted, quantized and run with LiteRT's tools."""
