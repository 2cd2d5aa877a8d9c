"""The host-side proxy through which a run reaches models: it records turns, holds the keys, and answers again."""
