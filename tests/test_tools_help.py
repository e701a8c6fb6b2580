"""Every command says what it is for with an example, and ends wrong arguments on stderr with code 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [ROOT / "experiments" / "train_net.py", *sorted((ROOT / "tools").glob("*.py"))]


def run(command, *words):
    environment = {**os.environ, "COLUMNS": "120", "SAM_D2_DATASETS": "/nowhere/datasets.json"}
    return subprocess.run(
        [sys.executable, str(command), *words], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.name)
def test_help_has_an_example(command):
    done = run(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: ")
    examples = re.findall(
        rf"^ +(?:python )?(?:\S*/)?{re.escape(command.name)}.*$", done.stdout.partition("\n\n")[2], re.M
    )
    assert examples, "no example line that begins with the command"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.name)
def test_an_unknown_option_is_said_on_stderr(command):
    done = run(command, "--no-such-option")
    assert done.returncode == 2 and done.stdout == ""
    assert "error: " in done.stderr and "Traceback" not in done.stderr
