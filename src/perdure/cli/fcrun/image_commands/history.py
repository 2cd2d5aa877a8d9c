"""fcrun image history: as ``fcrun history``."""

from perdure.cli.fcrun.history import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "history"
GROUP = "Images"
