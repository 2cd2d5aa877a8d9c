"""The commands of ``fcrun volume``, one module each."""
