"""Vocabulary and arithmetic of detection, without state: structures, boxes, masks, layers, resizing.

`structures` has the types that packages exchange (`Target`, `Batch`, `Predictions`, `Detections`), `classes` the one
place where category ids and class indices meet (`ClassMap`). Boxes always state format and unit. May import `catalog`,
`errors` and the other modules without torch.
"""
