"""fcrun info: the short name of ``fcrun system info``, as docker has it."""

from perdure.cli.fcrun.system_commands.info import GROUP, HELP, NAME, configure, run

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]
