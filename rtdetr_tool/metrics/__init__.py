"""COCO metrics: `CocoEvaluator` takes detections, merges the ranks' states and computes a `CocoResult`.

Numbers are those of pycocotools; an undefined one is None. Only `build` sees a spec. May import `ops` and the layers
below; imports no other package of its own layer.
"""
