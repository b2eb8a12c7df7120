"""A third family, as small as a DETR can be. `tests/test_third_family.py` registers it and runs the commands with it.

It is one package and one row in the table of families; nothing else in `rtdetr_tool` knows it.
"""
