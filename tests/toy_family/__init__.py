"""A minimal DETR as a third family. `tests/test_third_family.py` registers it and runs the commands with it.

It is one package and one row in the table of families; nothing else in `rtdetr_tool` refers to it.
"""
