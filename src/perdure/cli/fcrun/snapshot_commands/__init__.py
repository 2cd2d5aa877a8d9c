"""The commands of ``fcrun snapshot``, one module each (see ``cli.program``)."""
