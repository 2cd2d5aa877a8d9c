"""fcrun image pull: as ``fcrun pull``."""

from perdure.cli.fcrun.pull import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "pull"
GROUP = "Images"
