"""`python -m rtdetr_tool` is the same as `rtdetr`."""

import sys

from rtdetr_tool.cli import main

if __name__ == "__main__":
    sys.exit(main())
