"""The commands of ``fcrun network``."""
