"""fcrun image push: as ``fcrun push``."""

from perdure.cli.fcrun.push import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "push"
GROUP = "Images"
