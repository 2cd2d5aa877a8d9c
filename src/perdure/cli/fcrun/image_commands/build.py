"""fcrun image build: as ``fcrun build``."""

from perdure.cli.fcrun.build import DESCRIPTION, HELP, configure, run

__all__ = ["DESCRIPTION", "GROUP", "HELP", "NAME", "configure", "run"]

NAME = "build"
GROUP = "Images"
