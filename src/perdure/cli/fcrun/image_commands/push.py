"""fcrun image push: as ``fcrun push``."""

from perdure.cli.fcrun.push import DESCRIPTION, HELP, configure, run

__all__ = ["DESCRIPTION", "GROUP", "HELP", "NAME", "configure", "run"]

NAME = "push"
GROUP = "Images"
