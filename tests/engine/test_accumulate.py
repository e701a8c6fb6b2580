"""Several batches a step are one larger batch."""

import json

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, batch):
        output = self.layers(torch.stack(batch))
        return {"loss_square": output.square().mean(), "loss_mean": 0.1 * output.mean()}


def trained(batch, accumulate, steps=3, **options):
    model = Square()
    images = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    loader = [list(part) for part in images.split(batch)]
    trainer = Trainer(model, loader, torch.optim.AdamW(model.parameters(), lr=0.05), accumulate=accumulate, **options)
    trainer.train(0, steps)
    return trainer


@pytest.mark.parametrize("options", [{}, {"clip_gradient_norm": 0.05}])
def test_it_equals_the_larger_batch(options):
    whole = trained(8, 1, **options)
    for batch, accumulate in ((4, 2), (2, 4)):
        parts = trained(batch, accumulate, **options)
        torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-6)
        for name in ("loss_square", "loss_mean", "total_loss"):
            values, expected = (trainer.storage.history(name).values() for trainer in (parts, whole))
            assert [value for value, _ in values] == pytest.approx([value for value, _ in expected], abs=1e-6)
        assert [count for count, _ in parts.storage.history("images").values()] == [8, 8, 8]
    assert not torch.equal(trained(4, 1).model.layers[0].weight, whole.model.layers[0].weight)


@pytest.mark.parametrize("accumulate", [0, -1])
def test_refusal(accumulate):
    with pytest.raises(UserError, match=rf"train\.accumulate={accumulate}: expected at least 1"):
        trained(4, accumulate)


def test_processes_exchange_gradients_once_a_step(monkeypatch, tmp_path):
    """Counted in a process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exchanged = []
        model = DistributedDataParallel(Square())

        def count(state, bucket):
            exchanged.append(bucket.index())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        model.register_comm_hook(None, count)
        loader = [list(torch.ones(2, 6)) for _ in range(9)]
        trainer = Trainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=3)
        trainer.train(0, 3)
        assert len(exchanged) == 3
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_sees_the_same_images_in_the_same_order(tmp_path, train_net):
    """4 steps of 2 batches of 2 images are 4 steps of 4, and a resumed run goes on at the right image."""
    options = ["train.max_iter=4", "train.eval_base=false", "train.eval_period=0", "train.log_period=1"]
    batch = "dataloader.train.total_batch_size"
    train_net(tmp_path / "whole", *options, f"{batch}=4")
    parts = [*options, f"{batch}=2", "train.accumulate=2", "train.checkpointer.period=2"]
    train_net(tmp_path / "parts", *parts)

    def losses(folder):
        rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}

    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert "A step takes 2 batches" in (tmp_path / "parts" / "log.txt").read_text()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000001.pth")
    final = torch.load(tmp_path / "parts" / "model_final.pth", weights_only=True)["model"]
    (tmp_path / "parts" / "model_final.pth").unlink()
    train_net(tmp_path / "parts", "--resume", *parts)
    again = torch.load(tmp_path / "parts" / "model_final.pth", weights_only=True)["model"]
    torch.testing.assert_close(again, final, rtol=0, atol=0)
