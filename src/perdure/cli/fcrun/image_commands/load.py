"""fcrun image load: as ``fcrun load``."""

from perdure.cli.fcrun.load import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "load"
GROUP = "Images"
