"""RT-DETR's network: hybrid encoder, decoder with denoising queries, frozen RADIO."""
