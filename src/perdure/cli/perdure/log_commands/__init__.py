"""The commands of ``perdure log``, one file each."""
