"""fcrun image rm: as ``fcrun rmi``."""

from perdure.cli.fcrun.rmi import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "rm"
GROUP = "Images"
