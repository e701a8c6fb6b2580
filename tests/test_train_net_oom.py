"""Trainings by experiments/train_net.py that run out of GPU memory on the way; injected."""

import json
import shutil

import pytest
import torch

from sam_d2.config import load_config, save_config
from sam_d2.engine.checkpoint import load_checkpoint_file
from sam_d2.modeling.sam import PromptableSAM

SAM = ["train.max_iter=4", "train.eval_base=false", "train.eval_period=0", "train.log_period=1"]
SAM += ["dataloader.train.total_batch_size=4", "train.checkpointer.period=2"]
# Adam divides by the size of the gradient, which for vanishing ones is that of their rounding
SAM += ["optimizer.eps=1e-3", "optimizer.lr=0.01"]


def has(name):
    return lambda samples: any(sample["file_name"].endswith(name) for sample in samples)


def weights(folder):
    return load_checkpoint_file(folder / "model_final.pth")["model"]


def metric(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [(row["iteration"] + 1, row[name]) for row in rows if name in row]


def warnings_of(folder):
    return [line for line in (folder / "log.txt").read_text().splitlines() if "out of GPU memory" in line]


@pytest.fixture(scope="module")
def whole(train_net, tmp_path_factory, tiny_overrides):
    """A run without an error."""
    return train_net(tmp_path_factory.mktemp("oom") / "whole", overrides=[*tiny_overrides, *SAM])


@pytest.mark.slow
def test_in_parts_it_is_the_same_training(train_net, tmp_path, limit_memory, whole, tiny_overrides):
    limit_memory(PromptableSAM, lambda samples: len(samples) > 2)
    run = train_net(tmp_path / "parts", overrides=[*tiny_overrides, *SAM])
    torch.testing.assert_close(weights(run), weights(whole), rtol=0, atol=1e-5)
    for name in ("total_loss", "images"):
        parts, expected = metric(run, name), metric(whole, name)
        assert [step for step, _ in parts] == [step for step, _ in expected] == [1, 2, 3, 4]
        assert [value for _, value in parts] == pytest.approx([value for _, value in expected], rel=1e-5)
    assert metric(run, "oom_retried") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert metric(whole, "oom_retried") == []
    assert len(warnings_of(run)) == 4 and not warnings_of(whole)
    assert "Step 4: out of GPU memory with 4 images at once, where it needed 2.00 GiB more." in warnings_of(run)[3]
    assert "were skipped" not in (run / "log.txt").read_text()


@pytest.mark.slow  # tests/engine/test_oom.py has each part of it
def test_an_image_that_never_fits_and_a_resume(train_net, tmp_path, limit_memory, tiny_overrides):
    limit_memory(PromptableSAM, has("train_2.png"))
    overrides = [*tiny_overrides, *SAM]
    run = train_net(tmp_path / "run", overrides=overrides)
    # 6 images, of which each epoch has every one once: in 4 steps of 4 it comes 2 or 3 times.
    counts = metric(run, "oom_skipped")
    assert [count for _, count in counts] in ([1, 2], [1, 2, 3])
    skipped = [step for step, _ in counts]
    assert [step for step, _ in metric(run, "total_loss")] == [step for step in (1, 2, 3, 4) if step not in skipped]
    assert all("train_2.png (" in line and " instances) alone" in line for line in warnings_of(run))
    log = (run / "log.txt").read_text()
    assert f"*** {len(counts)} of 4 steps ({25 * len(counts):.1f} %) were skipped for want of GPU memory" in log
    half = shutil.copytree(run, tmp_path / "half")
    (half / "last_checkpoint").write_text("model_0000001.pth")
    (half / "metrics.json").unlink()
    train_net(half, "--resume", overrides=overrides)
    assert metric(half, "oom_skipped") == [entry for entry in counts if entry[0] > 2]
    assert all(torch.equal(value, weights(half)[name]) for name, value in weights(run).items())


def test_off_or_in_a_config_without_it(train_net, tmp_path, limit_memory, whole, tiny_overrides):
    cfg = load_config(whole / "config.yaml")
    assert cfg.train.pop("oom_retry") is True
    save_config(cfg, tmp_path / "earlier.yaml")
    limit_memory(PromptableSAM, lambda samples: len(samples) > 2)
    with pytest.raises(torch.OutOfMemoryError):
        train_net(tmp_path / "off", overrides=[*tiny_overrides, *SAM, "train.oom_retry=false"])
    earlier = ["--config-file", str(tmp_path / "earlier.yaml")]
    run = train_net(tmp_path / "on", *earlier, overrides=["train.max_iter=1"])
    assert metric(run, "oom_retried") == [(1, 1)]
