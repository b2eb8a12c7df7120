"""The network of the toy."""
