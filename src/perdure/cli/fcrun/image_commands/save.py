"""fcrun image save: as ``fcrun save``."""

from perdure.cli.fcrun.save import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "save"
GROUP = "Images"
