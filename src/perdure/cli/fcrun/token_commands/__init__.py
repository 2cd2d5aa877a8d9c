"""The commands of ``fcrun token``."""
