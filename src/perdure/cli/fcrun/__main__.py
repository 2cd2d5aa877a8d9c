"""``python -m perdure.cli.fcrun``."""

import sys

from perdure.cli.fcrun import main

sys.exit(main())
