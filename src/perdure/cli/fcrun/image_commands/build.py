"""fcrun image build: as ``fcrun build``."""

from perdure.cli.fcrun.build import HELP, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "build"
GROUP = "Images"
