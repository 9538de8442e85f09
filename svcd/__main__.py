"""`python -m svcd` is svcctl."""

import sys

from svcd.cli import main

if __name__ == "__main__":
    sys.exit(main())
