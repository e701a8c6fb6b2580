"""W&B's own library, offline: what it writes, and what its agent makes of the sweep. Skipped where it is absent."""

import json
import os
import struct
from pathlib import Path

import pytest
import yaml

import sam_d2  # noqa: F401
from detectron2.utils.events import EventStorage
from sam_d2.cli import parse_args
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.wandb_writer import ID_FILE, WandbWriter
from sam_d2.errors import UserError

wandb = pytest.importorskip("wandb")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch, tmp_path):
    """No key, no variable of a run, and no folder that the library could write to but those of the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    wandb.teardown()
    assert not list((tmp_path / "here").iterdir()), "the run's files belong into its folder"


def records(file: Path):
    """Yield the records of a ``.wandb`` file: after 7 bytes LevelDB's log format, with protocol buffers in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at < len(data):
        left_in_block = 2**15 - at % 2**15
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def written(folder: Path):
    """Return run, scalars by step, and exit code of each offline run of a folder, in the order of their starts."""
    wandb.teardown()  # the library's own process writes the last of it after the run's end
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        run, history, code = None, {}, None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
            elif kind == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                history[int(items["_step"])] = {k: json.loads(v) for k, v in items.items() if k[0] != "_"}
            elif kind == "exit":
                code = record.exit.exit_code
        found.append((run, history, code))
    return found


def log(folder, start, values, **options):
    """Train one step for each value, and be evaluated after the last."""
    writer = WandbWriter(folder, **options)
    with EventStorage(start) as storage:
        try:
            for value in values:
                storage.put_scalar("total_loss", value)
                if value is None:
                    raise UserError("no loss")
                writer.write()
                storage.step()
            storage.put_scalar("segm/AP", 61.5, smoothing_hint=False)
            writer.write()
        finally:
            writer.close()


def test_an_offline_run_and_what_resumes_it(tmp_path):
    folder = tmp_path / "tiles_box"
    log(folder, 0, [3.0, 1.0], mode="offline", config={"train": {"seed": 4}})
    log(folder, 2, [0.5], mode="offline")
    (first, curve, code), (second, rest, _) = written(folder)
    # step 1: the median of 3 and 1
    assert curve == {0: {"total_loss": 3.0}, 1: {"total_loss": 2.0}, 2: {"segm/AP": 61.5}} and code == 0
    assert rest == {2: {"total_loss": 0.5}, 3: {"segm/AP": 61.5}}
    assert first.run_id == second.run_id == (folder / ID_FILE).read_text()
    assert (first.project, first.display_name) == ("sam_d2", "tiles_box")
    assert {item.key: json.loads(item.value_json) for item in first.config.update}["train"] == {"seed": 4}


def test_the_environment_may_say_offline_and_an_error_is_a_failed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises((UserError, TypeError)):
        log(tmp_path / "run", 0, [3.0, None])
    ((_, curve, code),) = written(tmp_path / "run")
    assert curve == {0: {"total_loss": 3.0}} and code == 1


def test_disabled_writes_nothing_of_a_run(tmp_path):
    log(tmp_path / "run", 0, [3.0], mode="disabled")
    assert [file.name for file in (tmp_path / "run").iterdir()] == [ID_FILE]


def test_without_a_key_it_ends_with_one_message_and_leaves_no_run(tmp_path):
    with pytest.raises(UserError, match=r"(?i)cannot begin .*key.*`wandb login`, or set train\.wandb\.mode=offline"):
        WandbWriter(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_what_the_agent_starts_for_each_value_of_the_sweep(tmp_path, monkeypatch):
    """The agent without its server: it is told what to run, as the server would."""
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "cartons.yaml").read_text())
    (tmp_path / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/$WANDB_RUN_ID"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "agent"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    agent = Agent(api=None, queue=None)
    agent._sweep_command = sweep["command"]
    cfg = load_config(ROOT / "configs" / "cartons.py")
    choices = {key: one.get("values") or [one["min"], one["max"]] for key, one in sweep["parameters"].items()}
    for number in range(max(map(len, choices.values()))):
        run_id, values = f"r{number}", {key: among[number % len(among)] for key, among in choices.items()}
        arguments = {key: {"value": value} for key, value in values.items()}
        agent._process_command({"type": "run", "run_id": run_id, "program": sweep["program"], "args": arguments})
        assert agent._run_processes[run_id].wait() == 0
        program, *words = (tmp_path / run_id).read_text().splitlines()
        args = parse_args(words)
        changed = apply_overrides(cfg, args.opts)  # refuses a key that the config lacks
        assert (program, args.output_dir) == (sweep["program"], f"experiments/output/sweep_cartons_{run_id}")
        assert (args.config_file, args.dataset, args.resume) == ("configs/cartons.py", "cartons", False)
        assert changed.train.wandb.enabled is True and changed.optimizer.lr == values["optimizer.lr"]
        assert all(changed.model[key.removeprefix("model.")] == v for key, v in values.items() if "model" in key)
