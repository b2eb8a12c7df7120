"""TFLite: the file, converting and calibrating a model, and running it in LiteRT."""
