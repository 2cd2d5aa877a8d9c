"""The replay road: an agent's function in a process of this machine, which runs again from its start and hears again
what its log has (docs/design/0021-replay.md)."""
