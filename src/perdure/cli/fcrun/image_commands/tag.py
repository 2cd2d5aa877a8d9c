"""fcrun image tag: as ``fcrun tag``."""

from perdure.cli.fcrun.tag import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "tag"
GROUP = "Images"
