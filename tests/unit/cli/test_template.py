"""The templates that people type for ``docker --format``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.fcrun._format import Open
from perdure.cli.fcrun._template import Template
from perdure.cli.fcrun._template_values import printed
from perdure.errors import InvalidValue

BOX: dict[str, Any] = {
    "Names": "box",
    "State": {"Status": "running", "ExitCode": 0, "Paused": False},
    "Config": {"Labels": Open({"com.example/role": "web", "tier": "1"}), "Env": ["A=b", "C=d"], "Cmd": None},
    "Ports": {"80/tcp": [{"HostPort": "8080"}], "443/tcp": None},
    "Size": 1536,
    "Part": 0.5,
    "Label": lambda name: {"tier": "1"}.get(name, ""),
    "Mounts": [],
}

# as they are typed, and what docker says to them
TYPED = [
    ("{{.Names}}", "box"),
    ("{{ .Names }}: {{.State.Status}}", "box: running"),
    ("{{.State.Paused}} {{.Size}} {{.Part}} {{.Config.Env}}", "false 1536 0.5 [A=b C=d]"),
    ("{{.State}}", "map[ExitCode:0 Paused:false Status:running]"),
    ("{{.Config.Cmd}}", "<no value>"),
    ("{{json .Config.Env}}", '["A=b","C=d"]'),
    ("{{json .State.ExitCode}}{{json .Names}}", '0"box"'),
    ("{{.Config.Env | json}}", '["A=b","C=d"]'),
    ('{{index .Config.Labels "com.example/role"}}', "web"),
    ('{{index .Config.Labels "none"}}', ""),
    ("{{.Config.Labels.tier}}{{.Config.Labels.none}}", "1<no value>"),
    ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
    ('{{range $p, $conf := .Ports}}{{$p}}->{{if $conf}}{{(index $conf 0).HostPort}}{{else}}none{{end}} {{end}}',
     "443/tcp->none 80/tcp->8080 "),
    ("{{range .Config.Env}}{{println .}}{{end}}", "A=b\nC=d\n"),
    ("{{range $i, $e := .Config.Env}}{{if $i}}, {{end}}{{$e}}{{end}}", "A=b, C=d"),
    ("{{range $e := .Config.Env}}{{$e}};{{end}}", "A=b;C=d;"),
    ("{{range .Mounts}}x{{else}}no mounts{{end}}", "no mounts"),
    ('{{join .Config.Env ", "}}', "A=b, C=d"),
    ('{{index (split .Names "o") 1}}', "x"),
    ("{{upper .Names}} {{.Names | upper | lower}} {{title .Names}}", "BOX box Box"),
    ("{{len .Config.Env}} {{len .Names}}", "2 3"),
    ("{{if .State.Paused}}paused{{else}}not{{end}}", "not"),
    ('{{if eq .State.Status "exited" "running"}}yes{{end}}', "yes"),
    ('{{if and .Size (not .State.Paused)}}yes{{else if .Names}}named{{else}}no{{end}}', "yes"),
    ('{{if eq .Names "x"}}x{{else if .Names}}named{{else}}no{{end}}', "named"),
    ("{{if or .Mounts .Names}}{{or .Mounts .Names}}{{end}}", "box"),
    ("{{if gt .Size 1000}}large{{end}}", "large"),
    ("{{with .State}}{{.Status}} {{$.Names}}{{end}}{{with .Mounts}}x{{else}}none{{end}}", "running boxnone"),
    ('{{.Label "tier"}}{{.Label "none"}}', "1"),
    ('{{printf "%-5s|%d|%q|%v" .Names .Size .Names .Config.Env}}', 'box  |1536|"box"|[A=b C=d]'),
    ("{{$n := .Names}}{{$n}}{{$n = .Size}}{{$n}}", "box1536"),
    ("a {{- .Names -}} b", "aboxb"),
    ("{{/* nothing */}}x{{- /* nor here */ -}} y", "xy"),
    ("{{`raw \"text\"`}} {{\"a\\tb\"}}", 'raw "text" a\tb'),
    ("{{slice .Names 0 2}} {{truncate .Names 2}} {{pad .Names 1 1}}|", "bo bo  box |"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{ (.State).Status }}", "running"),
    ("{{not true}} {{eq 1 1}} {{nil}}", "false true <no value>"),
    ("no action, } nor { or }}", "no action, } nor { or }}"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TYPED)
def test_what_docker_users_type(text: str, said: str) -> None:
    assert Template(text).fill(BOX) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Nmaes}}", "there is no field 'Nmaes'\n  Did you mean .Names?"),
        ("{{.names}}", "Did you mean .Names?"),
        ("{{.State.Stat}}", "Did you mean .Status?"),
        ("{{.Names.Stat}}", "no field 'Stat' in 'box'"),
        ("{{jsn .}}", "no function 'jsn'\n  Known: and, eq"),
        ("{{.Names", "a }} is missing"),
        ("{{if .Names}}x", "there is no {{end}}"),
        ("{{end}}", "{{end}} has no beginning"),
        ("{{}}", "{{}} is empty"),
        ("{{if}}x{{end}}", "a value is missing"),
        ("{{(.Names}}", "a ) is missing"),
        ("{{.Names |}}", "a value is missing beside |"),
        ("{{$x}}", "no variable $x"),
        ('{{define "x"}}', "{{define}} is not supported"),
        ("{{len .Size}}", "len cannot take (1536)"),
        ("{{index .Config.Env 7}}", "index cannot take ([A=b C=d], 7): there is no 7"),
        ("{{range .Names}}{{end}}", "range cannot go through 'box'"),
        ("{{.Names .Size}}", "is no function"),
        ("{{.Names %}}", "'%' does not read"),
        ('{{"\\q"}}', 'the string "\\q" does not read'),
        ('{{printf "%d" .Names}}', "printf cannot take"),
        ("{{lt .Names 1}}", "lt cannot take"),
    ],
)
def test_what_it_does_not_know_is_told(text: str, words: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Template(text).fill(BOX)
    assert words in str(caught.value) and str(caught.value).startswith("--format: ")


def test_the_fields_of_a_table() -> None:
    assert Template("{{.A}}\t{{upper .B.C}}{{if .D}}x{{end}}{{range .E}}{{.F}}{{end}}").fields == ["A", "B", "D", "E"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[A-Za-z]\w{0,6}", fullmatch=True), inner)
    ),
    max_leaves=12,
)


@given(values)
def test_json_says_what_is_there(value: Any) -> None:
    assert json.loads(Template("{{json .V}}").fill({"V": value})) == value


@given(st.text())
def test_text_without_actions_stays(text: str) -> None:
    if "{{" not in text:
        assert Template(text).fill({}) == text


@given(st.dictionaries(st.from_regex(r"[A-Za-z]\w{0,6}", fullmatch=True), values, min_size=1))
def test_every_field_is_printed(value: dict[str, Any]) -> None:
    for name, inner in value.items():
        assert Template("{{." + name + "}}").fill(value) == printed(inner)


PIECES = re.findall(r"\S+", r'{{ }} - . .A $ | ( ) " if range end else x 1 := json index with \ ` ,')


@given(st.lists(st.sampled_from([*PIECES, " "]), max_size=14).map("".join))
def test_whatever_is_typed_is_printed_or_told(text: str) -> None:
    try:
        Template(text).fill({"A": [1, {"x": "y"}]})
    except InvalidValue:
        pass


def test_conditions_within_conditions() -> None:
    text = "{{if .Names}}" * 50 + "x" + "{{end}}" * 50
    assert Template(text).fill(BOX) == "x"
