"""``python -m nestor`` is the ``nestor`` command."""

import sys

from nestor.cli import main

sys.exit(main())
