"""Ctrl-C at random moments in every tool: it ends with one line and 130, and no file is half written."""

import random
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
MOMENTS = ((0.0, 0.0), (0.0, 1.5), (1.5, 3.5))
"""Seconds of CPU after a tool has begun: a moment of each is drawn, as long as the one before found it at work."""
SECONDS_BEFORE = 0.5
"""Of CPU, that a tool may take until it tells of a Ctrl-C: before that the traceback is Python's."""


class Slow(BaseHTTPRequestHandler):
    """A file of a megabyte that comes in twenty seconds."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(100 * 10_000))
        self.end_headers()
        for _ in range(100):
            try:
                self.wfile.write(bytes(10_000))
            except OSError:  # the tool is gone
                return
            time.sleep(0.2)

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    """Of a slow file on a server of the test's own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/weights.pth"
        server.shutdown()
        thread.join()


@pytest.fixture
def command(finished_run, shapes_folder, tiny_overrides, tmp_path, address):
    """``command(tool name)``: the words that have it work for some seconds; all that it writes is in ``tmp_path``."""
    run, out = shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "out"
    file = shapes_folder / "dataset_train.json"
    out.mkdir()
    torch.save(resnet18().state_dict(), tmp_path / "r18.pth")
    words = {
        "benchmark": ["mask-decoder", "--output-dir", out],
        "calibrate_scores": [run, "--test"],
        "check_dataset": [file, "--images", "--json", out / "findings.json"],
        "convert_torchvision_backbone": [tmp_path / "r18.pth", "--output", out / "r18.pkl"],
        "demo": ["--config-file", run, "--input", *shapes_folder.glob("*.png"), "--output", out],
        "detector_errors": [ROOT / "configs/mask_rcnn_R_18_FPN.py", "--dataset", file, "--output", out / "e.json"],
        "download_checkpoint": [address, "--output", out],
        "export_checkpoint": [run, "--output", out / "exported.pth"],
        "fuzz": ["--inputs", "2000", "--findings", out],
        "masks_from_boxes": ["--dataset", file, "--config-file", run, "--output", out / "masks.json"],
        "merge_datasets": [f"a={file}", f"b={shapes_folder / 'dataset_test.json'}", "--output", out / "merged.json"],
        "prompt_robustness": [run, "--dataset", shapes_folder, "--output", out],
        "quickstart": [*tiny_overrides, "train.max_iter=50"],
        "register_dataset": ["shapes", "--train-json", file],
        "report": [run],
        "visualize_data": ["--config-file", run, "--dataset", shapes_folder, "--output", out / "samples.png"],
        "visualize_results": [run, "--output", out],
    }

    def make(tool):
        path = tool
        if tool.stem == "quickstart":  # it writes beside itself
            for name in ("tools", "experiments"):
                shutil.copytree(ROOT / name, tmp_path / name, ignore=lambda *_: ["output"])
            (tmp_path / "configs").symlink_to(ROOT / "configs")
            path = tmp_path / "tools" / tool.name
        return [path, *words[tool.stem]]

    return make


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_ctrl_c_in_a_tool(start, require_whole, command, tmp_path, tool):
    words, chance = command(tool), random.Random(tool.stem)
    hits = []
    for bounds in MOMENTS:
        program = start(*words, SAM_D2_DATASETS=str(tmp_path / "datasets.json"), NO_PROXY="127.0.0.1")
        assert program.wait_for(program.handles_signals), program.end()
        begun, moment = program.seconds_of_cpu(), chance.uniform(*bounds)
        if not program.work(moment):
            program.require_done()
            break
        program.press_ctrl_c()
        if program.end()[0] == -signal.SIGINT:  # it had done and said all, Python was clearing up
            assert not program.end()[2]
            break
        program.require_stopped(130, "interrupted")
        assert begun < SECONDS_BEFORE
        require_whole(tmp_path)
        hits.append(moment)
    print(f"{tool.stem}: Ctrl-C {len(hits)} times, {', '.join(f'{moment:.2f}' for moment in hits)} s after the start")
    if not hits:
        pytest.skip("it has ended before any Ctrl-C")
