"""The command line of training, and how a program ends; free of torch, so that ``--help`` is instant."""

import argparse
import atexit
import os
import re
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from sam_d2.errors import UserError
from sam_d2.faults import explained
from sam_d2.interruption import Interrupted, stop_requests
from sam_d2.visible_text import printable

OUR_FAULT = 70
"""Exit code of a program that ends with a traceback; Python's own, 1, is what tools say of warnings and differences."""
NO_READER = 141
"""Exit code of a program whose output nobody reads any more, such as into ``head``: as of one that SIGPIPE ends."""

EXAMPLES = """
examples:
  train on a data set with box prompts, on a GPU or on the CPU if there is none:
    %(prog)s --config-file configs/sam.py --dataset data/my_images --prompt box
  score the checkpoint that the run has written:
    %(prog)s --config-file configs/sam.py --dataset data/my_images --prompt box --eval-only
  go on after an interruption:
    %(prog)s --config-file configs/sam.py --dataset data/my_images --prompt box --resume
  score it with the boxes of a detector, with no ground truth in the prompts:
    %(prog)s --config-file configs/sam.py --dataset data/my_images --prompt detector --eval-only \\
        train.init_checkpoint=RUN/model_final.pth dataloader.detector.config=RUN_OF_THE_DETECTOR
  change what the config says (+key=value adds a key that it does not have):
    %(prog)s --config-file configs/sam_tiny.py --dataset iwp train.max_iter=200 optimizer.lr=1e-4
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with what is wrong, and the nearest option where one is unknown."""
        if message.startswith("unrecognized arguments"):
            for word in re.findall(r"--[\w.-]+", message):
                if "." in word:
                    message += f". {word[2:]}=VALUE, without dashes, changes the config"
                elif nearest := get_close_matches(word, self._option_string_actions, 1):
                    message += f". Did you mean {nearest[0]}?"
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``experiments/train_net.py``: Detectron2's options, and those of sam_d2.

    Names and defaults are those of Detectron2's ``default_argument_parser``, so that its launch scripts work
    here.
    """
    parser = _Parser(
        description="Train and score a model on a data set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="a .py config, or a run's folder or config.yaml"
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME|FOLDER|FILE",
        help="a registered name, a folder of train and test annotations, or one file (split 80:20)",
    )
    parser.add_argument(
        "--prompt",
        metavar="NAME",
        help="what SAM is given for each instance: box; point; points, 3 inside and 1 outside; mixed, box or point, "
        "drawn for each image and scored with both; clicks, a point and corrections, scored after 1, 3 and 5; "
        "detector, boxes, scored with the annotated ones and with those that a detector finds; or the name of a recipe "
        "that you add to the config's model.prompts",
    )
    parser.add_argument(
        "--prompt-boxes",
        metavar="FILE",
        help="with --prompt detector (the default then): a COCO results JSON with the boxes of any other system",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="run folder (default: experiments/output/CONFIG_DATASET_PROMPT)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="score a checkpoint, train nothing")
    machines = parser.add_argument_group("processes")
    machines.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes per machine, one per GPU; on the CPU where it has none",
    )
    machines.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    machines.add_argument("--machine-rank", type=int, default=0, metavar="I", help="this machine, from 0")
    machines.add_argument(
        "--dist-url",
        default=default_dist_url(),
        metavar="URL",
        help="where the processes meet; auto: a free port of this machine (default: %(default)s)",
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="key=value", help="changes to the config")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; options and ``key=value`` may stand in any order.

    Args:
        argv: the arguments without the program's name; those of the process if None.

    Returns:
        ``config_file, dataset, prompt, prompt_boxes, output_dir, resume, eval_only, num_gpus, num_machines,
        machine_rank, dist_url, opts``; ``opts`` is a list of ``key=value``.

    Raises:
        SystemExit: with code 2 and a message where an argument is wrong, with 0 after ``--help``.
    """
    parser = build_parser()
    try:
        args = parser.parse_intermixed_args(argv)
    except AttributeError as error:  # argparse restores what it has not saved yet where a signal comes in between
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    if not args.config_file:
        parser.error("--config-file is missing, for example --config-file configs/sam.py")
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("needed: --num-gpus >= 0, --num-machines >= 1, 0 <= --machine-rank < --num-machines")
    return args


def check_output(path: Path, option: str = "--output") -> None:
    """Refuse a file that cannot be written, before any work is done for it.

    Args:
        path: the file; folders on the way to it need not exist.
        option: what named it, for the message.

    Raises:
        UserError: it is a folder, a device or a pipe, or the nearest folder that exists is a file or may not be
            written to.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name the file, such as {path / 'NAME'}.")
    if path.exists() and not path.is_file():  # which would be replaced
        raise UserError(f"{option} {path}: is a device or a pipe, not a file. Name a file.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        problem = "may not be written to" if nearest.is_dir() else "is a file, not a folder"
        raise UserError(f"{option} {path}: {nearest} {problem}. Name another place.")


def require_one_process(tool: str) -> None:
    """Refuse to run as one of several processes, each of which would do all of the work and write the same file.

    Args:
        tool: its name, for the message.

    Raises:
        UserError: torchrun has started several.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(f"{tool} runs in one process, not {os.environ['WORLD_SIZE']}: start it without torchrun.")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and end the process: the one place where errors become messages and exit codes.

    Args:
        main: the program; what it returns is the exit code, None is 0.

    Raises:
        SystemExit: always; with 2 after a :class:`~sam_d2.errors.UserError`, whose message alone is printed, or a
            fault of the machine that :mod:`sam_d2.faults` knows, with 130 after Ctrl-C and 143 after SIGTERM, and with
            :data:`OUR_FAULT` after the traceback of any other exception. Where nobody reads its output any more it is
            :data:`NO_READER`, without a word.
    """
    # Raised by libraries at import, before every message of ours, and nothing that a user could change.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
    threading.excepthook = _thread_ended
    try:
        code = _exit_code(main)
    except RuntimeError as error:
        # Of a loader's worker that died torch may tell a second time, in whatever is done about the first.
        code = tell(error)
    # All is done and said: a Ctrl-C while Python clears up would only show where.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    """Run a program, print its error, and return its exit code."""
    try:
        with stop_requests.handled():
            return _code_of(main)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich's
            return NO_READER
        raise
    except KeyboardInterrupt as error:
        request = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(request.told, file=sys.stderr)
        return request.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout.fileno()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at the exit
            return NO_READER
        return tell(error)


def _code_of(main: Callable[[], int | None]) -> int:
    """Run a program to its end, where what it has printed is written: at the exit Python would complain by itself."""
    try:
        code = main() or 0
    except SystemExit:  # argparse's, after its help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _nobody_reads(descriptor: int) -> bool:
    """Tell whether a file is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def tell(error: Exception) -> int:
    """Print what an error says to the user, or its traceback where it is a fault of ours; return the exit code."""
    text = str(error) if isinstance(error, UserError) else explained(error)
    if text is None:
        sys.excepthook(type(error), error, error.__traceback__)  # W&B's, for one, notes that its run has failed
        return OUR_FAULT
    print(f"error: {printable(text)}", file=sys.stderr)
    return 2


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """Say nothing of a fault of the machine that a thread meets, such as TensorBoard's: the program meets it too."""
    if args.exc_value is None or explained(args.exc_value) is None:
        threading.__excepthook__(args)


def default_dist_url() -> str:
    """Return a local address with a port of the user's own: a run left behind shows as a port in use."""
    user = os.getuid() if hasattr(os, "getuid") else 1
    return f"tcp://127.0.0.1:{49152 + user % 16384}"
