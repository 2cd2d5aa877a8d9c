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
