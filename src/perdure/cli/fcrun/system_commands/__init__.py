"""The commands of ``fcrun system``, one module each."""
