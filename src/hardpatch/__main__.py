"""`python -m hardpatch`."""

import sys

from hardpatch.cli import main

sys.exit(main())
