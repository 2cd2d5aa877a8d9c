"""Flags with a value, as Go's programs take them."""

from __future__ import annotations

import argparse

import pytest

from perdure.cli import fcrun
from perdure.cli.booleans import plain


def parser(command: str) -> argparse.ArgumentParser:
    return fcrun.parser_of(fcrun.command_module(command))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--rm=true -d=1 box", "--rm -d box"),
        ("--rm=false --tty=F box", "box"),
        ("--rm --rm=false box", "box"),
        ("--rm=false --rm=true box", "--rm box"),
        ("--privileged=false box", "box"),
        ("--rm=maybe box", "--rm=maybe box"),
        ("--name=true --sig-proxy=false box", "--name=true --sig-proxy=false box"),  # they take one
        ("--name --rm=true --init=true box", "--name --rm=true --init box"),  # a value, however it looks
        ("-te A=1 --rm=true box", "-te A=1 --rm box"),
        ("-eA=1 --rm=true box", "-eA=1 --rm box"),
        ("-it --tty=false box", "-i box"),  # the last one is what counts
        ("-t --tty=false box", "box"),
        ("-it --interactive=0 -t=0 box", "box"),
        ("-dit=false box", "-d -i box"),
        ("-dt=true -t=false box", "-d box"),
        ("-tvt:/t --tty=false box", "-vt:/t box"),  # a letter of a value stays
        ("-te t=1 --tty=false box", "-e t=1 box"),
        ("--name -t --tty=false box", "--name -t box"),
        ("--tty=false -it box", "-it box"),
        ("--tls-verify true --rm=false box", "--tls-verify=true box"),
        ("--tls-verify --rm=true box", "--tls-verify=true --rm box"),
        ("--tls-verify box --rm=true", "--tls-verify=true box --rm=true"),
        ("--tls-verify=false --rm=true box", "--tls-verify=false --rm box"),
        ("-it box prog --rm=true", "-it box prog --rm=true"),  # the command's own
        ("-- --rm=true", "-- --rm=true"),
        ("--nosuch --rm=true box", "--nosuch --rm box"),
        ("--name", "--name"),
    ],
)
def test_flags_with_a_value(given: str, words: str) -> None:
    assert plain(parser("run"), given.split()) == words.split()


def test_flags_after_names() -> None:
    assert plain(parser("ps"), ["--all=true", "--filter", "name=x", "--no-trunc=false"]) == [
        "--all",
        "--filter",
        "name=x",
    ]
    assert plain(parser("rm"), ["box", "--force=true"]) == ["box", "--force"]
    assert plain(parser("cp"), ["-", "box:/", "--archive=true"]) == ["-", "box:/", "--archive"]


def test_a_word_that_is_no_truth_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert fcrun.main(["ps", "--all=maybe"]) == 125
    assert "--all" in capsys.readouterr().err
