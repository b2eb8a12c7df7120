"""Losses and matching of queries and objects, shared by the families.

In: `Predictions` and `Target`s. Out: `loss`, the total, and every weighted term by TAO's names. All decoder layers and
images of a step are matched at once, with one copy from device to host. Only `build` sees a spec. May import `ops` and
the layers below; imports no other package of its own layer.
"""
