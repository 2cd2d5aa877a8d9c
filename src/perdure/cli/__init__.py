"""The command lines: one file per command; they import client, model, errors and nothing heavier."""
