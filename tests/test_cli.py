"""The command line: Detectron2's options under their names and defaults, no torch, readable ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.engine import default_argument_parser
from sam_d2.cli import build_parser, check_output, parse_args, run_main
from sam_d2.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def test_every_option_of_detectron2_is_there_with_its_default():
    theirs = vars(default_argument_parser().parse_args([]))
    ours = vars(build_parser().parse_args([]))
    assert ours.items() >= theirs.items()
    assert ours.keys() - theirs.keys() == {"dataset", "prompt", "prompt_boxes", "output_dir"}
    options = {name for action in default_argument_parser()._actions for name in action.option_strings}
    assert options <= {name for action in build_parser()._actions for name in action.option_strings}


def test_options_and_overrides_in_any_order():
    line = "--config-file configs/sam.py train.max_iter=2 --dataset iwp --eval-only +a.b=1 --num-gpus 2"
    args = parse_args(line.split())
    assert args.opts == ["train.max_iter=2", "+a.b=1"]
    assert (args.dataset, args.eval_only, args.num_gpus, args.resume) == ("iwp", True, 2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--config-file is missing, for example"),
        ("--config-file a.py --num-gpus two", "invalid int value: 'two'"),
        ("--config-file a.py --num-gpus -1", "--num-gpus >= 0"),
        ("--config-file a.py --machine-rank 1", "--machine-rank < --num-machines"),
        ("--config-file a.py --evaluate", "unrecognized arguments: --evaluate"),
        ("--promt box --config-file a.py", "unrecognized arguments: --promt. Did you mean --prompt?"),
        (
            "--config-file a.py --train.max_iter=5",
            "max_iter=5. train.max_iter=VALUE, without dashes",
        ),
    ],
)
def test_wrong_arguments_end_with_a_message_and_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(arguments.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_while_the_arguments_are_read(monkeypatch):
    """argparse stumbles over it, and what it raises by that is no fault of ours."""

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.format_usage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parse_args(["--config-file", "a.py"])


def test_a_prompt_of_the_users_own_is_left_to_the_config():
    assert parse_args(["--config-file", "a.py", "--prompt", "scribble"]).prompt == "scribble"


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "--dataset data/my_images --prompt box" in out and "%(prog)s" not in out
    assert "--eval-only \\\n        train.init_checkpoint=RUN" in out, "a command of two lines, to be copied"
    assert max(map(len, out.splitlines())) <= 120


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    check_output(tmp_path / "file")  # may be replaced
    check_output(tmp_path / "new" / "folder" / "x.html")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"--output .*: is a folder; name the file"):
        check_output(tmp_path)
    with pytest.raises(UserError, match=r"--to .*x\.html: .*/file is a file, not a folder"):
        check_output(tmp_path / "file" / "new" / "x.html", "--to")


def test_nor_is_one_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--output .*pipe: is a device or a pipe"):
        check_output(tmp_path / "pipe")


def test_nor_is_one_in_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("sam_d2.cli.os.access", lambda folder, mode: (folder, mode) != (tmp_path, os.W_OK))
    with pytest.raises(UserError, match="may not be written to"):
        check_output(tmp_path / "new" / "x.html")


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (lambda: _raise(UserError("f.json: image 3 has no size")), 2, "error: f.json: image 3 has no size\n"),
        (lambda: _raise(KeyboardInterrupt()), 130, "interrupted\n"),
        (lambda: sys.exit(5), 5, ""),
    ],
)
def test_run_main_ends_the_process(main, code, message, capsys):
    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == code
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_shows_where_and_is_no_code_of_a_result(capsys):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 1 // 0)
    assert end.value.code == 70
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.endswith("ZeroDivisionError: integer division or modulo by zero\n")
    assert "lambda: 1 // 0" in error


@pytest.mark.parametrize(
    "program",
    [
        "print('x' * 100_000)",  # a write finds the pipe closed
        "print('x'); return 2",  # it is still in the buffer at the end
        "print('x'); sys.exit(2)",
        "from rich.console import Console; Console().print('x\\n' * 9_000)",  # ends the process with 1 by itself
    ],
)
def test_a_program_whose_output_nobody_reads_has_none_of_its_codes(program):
    """Else `check_dataset.py ... | head` would end with the code of warnings."""
    code = f"import sys; from sam_d2.cli import run_main\ndef main():\n    {program}\nrun_main(main)"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_importing_the_command_line_and_configs_loads_no_torch():
    code = (
        "import sys, sam_d2, sam_d2.cli; assert 'torch' not in sys.modules, 'sam_d2.cli'\n"
        "import sam_d2.config; assert 'torch' not in sys.modules, 'sam_d2.config'\n"
        "import detectron2.config; assert 'torch' not in sys.modules, 'detectron2.config'"
    )
    environment = os.environ | {"SAM_D2_DETECTRON2": "embedded", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_help_of_the_training_loads_no_torch():
    command = [sys.executable, "-X", "importtime", str(ROOT / "experiments" / "train_net.py"), "--help"]
    environment = os.environ | {"SAM_D2_DETECTRON2": "embedded", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "--eval-only" in done.stdout and "sam_d2.cli" in imported
    assert not imported & {"torch", "numpy", "omegaconf", "cv2", "detectron2"}
