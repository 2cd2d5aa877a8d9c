"""fcrun image ls: as ``fcrun images``."""

from perdure.cli.fcrun.images import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "ls"
GROUP = "Images"
