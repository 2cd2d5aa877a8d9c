"""What every command line of ours does, whichever its commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = """
import signal, sys
NAME, HELP, GROUP = "stay", "stays", "Any"
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def configure(parser):
    parser.add_argument("--within", action="store_true")
def run(options):
    if options.within:
        Finalized()
    else:
        signal.raise_signal(signal.SIGINT)
    print("went on")
    return 0
"""


def test_ctrl_c_ends_a_command_wherever_it_comes(tmp_path: Path) -> None:
    """Within a finalizer Python prints a KeyboardInterrupt and goes on; nobody could end the command then."""
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "stay.py").write_text(COMMAND)
    main = f"from perdure.cli.program import Program; import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    main += f"sys.exit(Program('any', 'commands', {str(tmp_path / 'commands')!r}, 'Any.', ('Any',)).main())"
    for words in (["stay"], ["stay", "--within"]):
        ended = subprocess.run([sys.executable, "-c", main, *words], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", ""), words


GROUP = """
from pathlib import Path
from perdure.cli.program import Program
NAME, HELP, GROUP = "box", "boxes", "Any"
PROGRAM = Program("any box", "boxed", str(Path(__file__).parent.parent / "boxed"), "Boxes.", ("Any",), docker=True)
"""
MEMBER = """
from perdure.errors import NotFound
NAME, HELP, GROUP = "open", "opens one", "Any"
def configure(parser):
    parser.add_argument("box")
def run(options):
    if options.box == "none":
        raise NotFound("no such box", hint="Make one.")
    print("opened", options.box)
    return 3
"""


def test_a_group_of_commands_is_a_program_of_its_own(tmp_path: Path) -> None:
    for folder, name, text in (("commands", "box.py", GROUP), ("boxed", "open.py", MEMBER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    main = f"from perdure.cli.program import Program; import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    main += f"p = Program('any', 'commands', {str(tmp_path / 'commands')!r}, 'Any.', ('Any',), docker=True); "
    for words, status, out, err in (
        (["box", "open", "red"], 3, "opened red\n", ""),
        (["box", "open", "none"], 125, "", "any box: no such box\n  Make one.\n"),
        (["box", "open"], 125, "", "any: the following arguments are required: box\n  See 'any box open --help'.\n"),
        (["box", "oben"], 125, "", "any box: 'oben' is not a any box command\n  Did you mean 'open'?\n"),
        (["box", "open", "--version"], 125, "", None),
    ):
        ended = subprocess.run([sys.executable, "-c", main + f"sys.exit(p.main({words!r}))"],
                               capture_output=True, text=True, timeout=60)  # fmt: skip
        assert (ended.returncode, ended.stdout) == (status, out), words
        assert err is None or ended.stderr == err, words
    for words in (["box"], ["box", "--help"], ["help", "box"]):
        ended = subprocess.run([sys.executable, "-c", main + f"sys.exit(p.main({words!r}))"],
                               capture_output=True, text=True, timeout=60)  # fmt: skip
        assert ended.returncode == 0
        assert ended.stdout.startswith("Usage: any box COMMAND")
        assert "open        opens one" in ended.stdout
    pages = "print(*(f'{name}: {text.split()[1]}' for name, text in p.pages()), sep='\\n')"
    ended = subprocess.run([sys.executable, "-c", main + pages], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "any box: any\nany box open: any\n"
