"""The shared parts of networks: base classes of detectors, backbones, the hybrid encoder, parts of decoders.

In: images [B, 3, H, W] RGB 0..1. Out: `Predictions`. Parameters below `backbone`, `encoder` and `decoder` have the
names of the public RT-DETR and of TAO. `deploy()` returns a folded copy for inference. Only `build` sees a spec. The
networks of the families are in `families/<name>/model`. May import `ops`, `checkpoints` and the layers below.
"""
