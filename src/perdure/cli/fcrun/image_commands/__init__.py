"""The commands of ``fcrun image``, one module each."""
