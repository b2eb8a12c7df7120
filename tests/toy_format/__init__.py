"""A deployment format that rtdetr_tool does not know: TorchScript files (.toy) that end in a JSON description.

`test_fifth_format.py` adds its row to the table.
"""
