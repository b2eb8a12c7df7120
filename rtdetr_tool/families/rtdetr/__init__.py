"""RT-DETR (Zhao et al. 2023, arXiv:2304.08069), versions 1 and 2, with TAO's additions."""
