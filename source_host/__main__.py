"""`python -m source_host` (or `python -m pagefire.source_host`): the same as `pagefire source`."""

import sys

from pagefire.scripts.cli import main

if __name__ == "__main__":
    main(["source", *sys.argv[1:]])
