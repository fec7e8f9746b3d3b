"""`python -m wan_s2v`, for launchers such as torchrun that start modules."""

import sys

from wan_s2v.cli import main

if __name__ == "__main__":
    sys.exit(main())
