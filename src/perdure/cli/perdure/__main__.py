"""``python -m perdure.cli.perdure``."""

import sys

from perdure.cli.perdure import main

sys.exit(main())
