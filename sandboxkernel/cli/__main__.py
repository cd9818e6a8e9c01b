"""`python -m sandboxkernel.cli` is `sandboxkernel`."""

import sys

from sandboxkernel.cli import main

if __name__ == "__main__":
    sys.exit(main())
