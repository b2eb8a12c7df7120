"""D-FINE (Peng et al. 2024, arXiv:2410.13842): RT-DETR's design with boxes as distributions over their edges."""
