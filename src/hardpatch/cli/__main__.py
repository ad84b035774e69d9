"""`python -m hardpatch.cli`."""

import sys

from hardpatch.cli import main

sys.exit(main())
