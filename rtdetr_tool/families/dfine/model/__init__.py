"""The network of D-FINE."""
