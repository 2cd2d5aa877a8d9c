"""fcrun image import: as ``fcrun import``."""

from perdure.cli.fcrun.import_ import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "import"
GROUP = "Images"
