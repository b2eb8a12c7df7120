"""What the commands and the Python API do: evaluate, run inference, export, build engines, check data, convert.

A workflow takes a spec or an opened model and returns results or writes files. It reports progress and logs, but does
not parse arguments, manage results folders or print tables: `commands` does. It may import everything below `commands`.
"""
