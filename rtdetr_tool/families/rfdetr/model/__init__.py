"""RF-DETR's network: projector, decoder with groups of queries, mask head."""
