"""The commands of ``fcrun template``, one module each (see ``cli.program``)."""
