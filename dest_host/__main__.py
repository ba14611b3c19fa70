"""`python -m dest_host` (or `python -m pagefire.dest_host`): the same as `pagefire dest`."""

import sys

from pagefire.scripts.cli import main

if __name__ == "__main__":
    main(["dest", *sys.argv[1:]])
