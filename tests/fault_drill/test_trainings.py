"""Faults that end a real training: signals to it and its group, full disks, a lost worker, a second program."""

import json
import os
import random
import re
import signal
import subprocess

import pytest
import torch

pytestmark = pytest.mark.slow
LONG = ["train.max_iter=5000", "train.eval_period=0", "train.eval_base=false", "train.log_period=1"]
SHORT = ["train.max_iter=8", "train.checkpointer.period=2", "train.eval_period=4", "train.eval_base=false"]
CACHED = ["model.freeze=[image_encoder,prompt_encoder]", "train.cache_embeddings=true"]


@pytest.fixture
def train(start, shapes_folder, tiny_overrides):
    """``train(folder, *arguments, launcher=())``: experiments/train_net.py on the shapes."""

    def begin(folder, *arguments, launcher=()):
        words = ["experiments/train_net.py", "--config-file", "configs/sam_tiny.py", "--dataset", shapes_folder]
        return start(*launcher, *words, "--output-dir", folder, *tiny_overrides, *arguments)

    return begin


@pytest.fixture(scope="module")
def whole(train_net, tiny_overrides, tmp_path_factory):
    """``whole(*options)``: final weights of a short run without a fault."""
    return lambda *options: weights(
        train_net(tmp_path_factory.mktemp("whole") / "run", overrides=[*tiny_overrides, *SHORT, *options])
    )


def steps(folder):
    file = folder / "metrics.json"
    return len(file.read_text().splitlines()) if file.exists() else 0


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_ctrl_c_while_loading(train, require_whole, tmp_path):
    folder = tmp_path / "run"
    first = train(folder, *LONG)
    assert first.wait_for(first.handles_signals)
    begun = first.seconds_of_cpu()
    assert first.wait_for(lambda: steps(folder) >= 2)
    seconds = first.seconds_of_cpu() - begun
    first.press_ctrl_c()
    first.require_stopped(130, "interrupted")
    last = (folder / "last_checkpoint").read_text()
    chance = random.Random(0)
    for share in [0.0, *(chance.uniform(*bounds) for bounds in ((0, 0.3), (0.3, 0.6), (0.6, 0.8)))]:
        program = train(folder, *LONG, "--resume")
        assert program.wait_for(program.handles_signals)
        assert program.work(share * seconds)
        program.press_ctrl_c()
        program.require_stopped(130, "interrupted")
        require_whole(folder)
        print(f"Ctrl-C at {share:.2f} of the loading, {steps(folder)} steps")
    assert (folder / "last_checkpoint").read_text() >= last
    train(folder, "train.max_iter=400", "--resume", "train.eval_period=0").require_done()


@pytest.mark.parametrize("launcher", ["--num-gpus", "torchrun"])
def test_a_signal_to_two_processes(train, require_whole, tmp_path, launcher):
    folder = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    arguments = [] if words else ["--num-gpus", "2", "--dist-url", "auto"]
    done = 0
    for signum, code, line in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
        program = train(folder, *LONG, *arguments, *(["--resume"] if done else []), launcher=words)
        assert program.wait_for(lambda before=done: steps(folder) >= before + 3)
        if signum == signal.SIGINT:
            program.press_ctrl_c()
        else:
            os.kill(program.pid, signum)
        if launcher == "torchrun":  # which says it in its own way, with a traceback of its own
            assert program.end()[0] == 1, program.end()
        else:
            program.require_stopped(code, line)
        require_whole(folder)
        checkpoint = (folder / "last_checkpoint").read_text()
        before, done = done, int(re.search(r"_(\d+)\.pth", checkpoint)[1]) + 1
        assert done > before
        iterations = [json.loads(row)["iteration"] for row in (folder / "metrics.json").read_text().splitlines()]
        assert iterations == list(range(done)), "every step once"
    options = [f"train.max_iter={done + 2}", "train.eval_period=0", "--resume"]
    train(folder, *options, *arguments, launcher=words).require_done()


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(free)``: a folder on a disk with so many free bytes; ``small_disk.clear()`` makes room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        line = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
        subprocess.run(line, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {getattr(error, 'stderr', error)}")
    filler = folder / "filler"

    def fill(free):
        room = os.statvfs(folder)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - free)
        return folder

    fill.folder, fill.clear = folder, filler.unlink
    yield fill
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.1, 0.7, 1.5, 2.9])
def test_a_full_disk(train, require_whole, small_disk, whole, finished_run, share):
    """Full within the first checkpoint, the second, and what follows an evaluation."""
    folder = small_disk(int(share * (finished_run / "model_0000005.pth").stat().st_size)) / "run"
    train(folder, *SHORT).require_error(r".*no room to write \(No space left on device")
    print(sorted(file.name for file in folder.glob("*.pth")))
    require_whole(folder)
    small_disk.clear()
    train(folder, *SHORT, "--resume").require_done()
    require_whole(folder)
    torch.testing.assert_close(weights(folder), whole(), rtol=0, atol=0)


@pytest.mark.parametrize("pages", [0, 3, 11])
def test_a_disk_that_is_full_of_embeddings(train, require_whole, small_disk, whole, tmp_path, pages):
    """It has room for so many files, each of which takes a page, and folders none; the run is on another disk."""
    folder = tmp_path / "run"
    options = [*SHORT, *CACHED, f"train.embedding_cache.folder={small_disk(pages * os.sysconf('SC_PAGE_SIZE')) / 'c'}"]
    train(folder, *options).require_error(f"embedding cache {small_disk.folder / 'c'}: .*No space left on device")
    require_whole(tmp_path)
    kept = len(list((small_disk.folder / "c").rglob("*.embedding")))
    small_disk.clear()
    train(folder, *options, "--resume").require_done()
    log = (folder / "log.txt").read_text()
    print(f"{kept} embeddings were kept; {re.findall('Embedding cache .* read, .*', log)}")
    assert "damaged" not in log
    torch.testing.assert_close(weights(folder), whole(*CACHED), rtol=0, atol=0)


def test_a_disk_that_another_program_fills(train, require_whole, small_disk):
    folder = small_disk(24 * 2**20) / "run"
    program = train(folder, *LONG, "train.checkpointer.period=10")
    assert program.wait_for(lambda: steps(folder) >= 12)
    small_disk.clear()
    small_disk(0)
    program.require_error(r".*no room to write \(No space left on device")
    small_disk.clear()
    require_whole(folder)
    assert (folder / "last_checkpoint").exists()
    train(folder, "train.max_iter=400", "train.eval_period=0", "--resume").require_done()


def test_a_lost_worker(train, require_whole, tmp_path):
    folder, options = tmp_path / "run", ["dataloader.train.num_workers=2", "train.checkpointer.period=3"]
    for number, signum in enumerate((signal.SIGKILL, signal.SIGTERM)):
        before = steps(folder)
        program = train(folder, *LONG, *options, *(["--resume"] if number else []))
        assert program.wait_for(lambda before=before: steps(folder) >= before + 5)
        os.kill(program.children()[-1], signum)
        program.require_error("A process that reads images .*died: .*goes on with --resume")
        require_whole(folder)
    train(folder, "train.max_iter=400", "train.eval_period=0", "--resume").require_done()


def test_a_second_program_on_the_folder_of_a_run(train, require_whole, tmp_path):
    folder = tmp_path / "run"
    first = train(folder, *LONG, "train.checkpointer.period=3")
    assert first.wait_for(lambda: steps(folder) >= 4)
    refused = f"{folder}: another process is at work on it .process {first.pid} on "
    for arguments in ([], ["--resume"], ["--eval-only", f"train.init_checkpoint={folder / 'model_0000002.pth'}"]):
        train(folder, *LONG, *arguments).require_error(refused)
    before = steps(folder)
    assert first.wait_for(lambda: steps(folder) > before), "the first goes on"
    first.process.kill()
    first.process.wait()
    train(folder, "train.max_iter=600", "train.eval_period=0", "--resume").require_done()
    require_whole(folder)
