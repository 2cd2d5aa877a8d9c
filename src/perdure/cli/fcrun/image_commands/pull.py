"""fcrun image pull: as ``fcrun pull``."""

from perdure.cli.fcrun.pull import DESCRIPTION, HELP, configure, run

__all__ = ["DESCRIPTION", "GROUP", "HELP", "NAME", "configure", "run"]

NAME = "pull"
GROUP = "Images"
