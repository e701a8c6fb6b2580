"""Commands in the documents name configs that exist and keys that these have."""

import re
import shlex
from pathlib import Path

import pytest

from sam_d2.cli import parse_args
from sam_d2.config import apply_overrides, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(text):
    """Yield the arguments of each command line of train_net.py: in tables and sentences, and in blocks of code."""
    variables = dict(re.findall(r"^([A-Z]+)=(\S+)$", text, re.MULTILINE))
    text = re.sub(r"\$([A-Z]+)\b", lambda found: variables.get(found[1], found[0]), text.replace("\\\n", " "))
    for found in re.finditer(r"experiments/train_net\.py( [^`\n]*)", text):
        line = found[1].rpartition('"')[0] if found[1].count('"') % 2 else found[1]  # the whole stands in quotes
        words = [word for word in shlex.split(line, comments=True) if not re.search(r"=\$[A-Z]", word)]  # the shell's
        if "..." not in words:  # the rest stands elsewhere
            yield words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_fit_the_configs(document):
    for words in commands_of(document.read_text(encoding="utf-8")):
        args = parse_args(words)
        if args.config_file.endswith(".py"):  # others are of runs
            apply_overrides(load_config(ROOT / args.config_file), args.opts)


def test_commands_are_found_wherever_they_stand():
    text = """
BASE=train.max_iter=7
```
torchrun --nproc-per-node 2 experiments/train_net.py --config-file a.py \\
    $BASE optimizer.lr=1
python experiments/train_net.py --config-file b.py --eval-only  # with a remark
TRAIN="python experiments/train_net.py --config-file d.py --resume"
```
| `DETECTRON2_DATASETS=x python experiments/train_net.py --config-file c.py 'x=[{a:1}]'` | `experiments/train_net.py` |
"""
    assert list(commands_of(text)) == [
        ["--config-file", "a.py", "train.max_iter=7", "optimizer.lr=1"],
        ["--config-file", "b.py", "--eval-only"],
        ["--config-file", "d.py", "--resume"],
        ["--config-file", "c.py", "x=[{a:1}]"],
    ]
