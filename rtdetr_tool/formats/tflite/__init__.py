"""Convert, quantize and run TFLite files with LiteRT's tools."""
