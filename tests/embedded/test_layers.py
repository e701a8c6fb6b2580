import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm, cat, cross_entropy, get_norm


def test_frozen_batch_norm():
    layer = FrozenBatchNorm2d(1, eps=0.0)
    layer.load_state_dict({key: torch.tensor([value]) for key, value in (("weight", 3.0), ("bias", 1.0))}, strict=False)
    # no statistics in the file: they are 0 and 1
    assert layer.running_mean.item() == 0 and layer.running_var.item() == 1
    layer.running_mean.fill_(2.0)
    layer.running_var.fill_(4.0)
    x = torch.tensor([[[[2.0, 6.0]]]])
    # (x - 2) / 2 * 3 + 1: 1 and 7
    assert layer.train()(x).flatten().tolist() == [1.0, 7.0]
    x.requires_grad_()
    y = layer(x)
    assert y.flatten().tolist() == [1.0, 7.0]
    y.sum().backward()
    assert x.grad.flatten().tolist() == [1.5, 1.5]  # 3 / 2
    assert list(layer.parameters()) == [] and layer.running_mean.item() == 2.0


def test_conversion_keeps_values_and_reaches_nested_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net(torch.randn(4, 3, 5, 5))
    expected = net.eval()(x := torch.randn(2, 3, 6, 6))
    FrozenBatchNorm2d.convert_frozen_batchnorm(net)
    assert type(net[1][0]) is FrozenBatchNorm2d
    torch.testing.assert_close(net.train()(x), expected)


def test_norms_by_name():
    assert get_norm("", 3) is None and get_norm(None, 3) is None
    assert type(get_norm("SyncBN", 3)) is nn.SyncBatchNorm
    assert get_norm("GN", 64).num_groups == 32
    assert get_norm(nn.BatchNorm2d, 5).num_features == 5
    x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    # over the two channels: mean 2, variance 1
    torch.testing.assert_close(get_norm("LN", 2)(x).flatten(), torch.tensor([-1.0, 1.0]))
    with pytest.raises(KeyError):
        get_norm("none of them", 3)


def test_convolution_with_norm_and_activation():
    layer = Conv2d(1, 1, 1, bias=False, norm=nn.Flatten(), activation=torch.neg)
    nn.init.constant_(layer.weight, 2.0)
    assert layer(torch.ones(1, 1, 1, 2)).tolist() == [[-2.0, -2.0]]
    assert layer(torch.zeros(0, 1, 1, 2)).shape == (0, 2)


def test_cat_of_one_copies_nothing():
    x = torch.ones(2)
    assert cat([x]) is x and cat([x, x]).shape == (4,)


def test_cross_entropy_of_nothing_has_a_gradient():
    x = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(x, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and x.grad.shape == (0, 3)
    # -log(1 / 4)
    assert cross_entropy(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(1.386294)


def _of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, mode, sizes in (
        ("even", "", (2, 2)),
        ("weighted", "N", (1, 3)),
        ("empty", "N", (0, 4)),
        ("none", "N", (0, 0)),
    ):
        layer = NaiveSyncBatchNorm(2, stats_mode=mode)
        x = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(1))
        mine = x[: sizes[0]] if rank == 0 else x[sizes[0] : sum(sizes)]
        mine = mine.clone().requires_grad_()
        y = layer(mine)
        y.pow(3).sum().backward()
        found[name] = [y.detach(), mine.grad, layer.weight.grad, layer.running_mean, layer.running_var]
    try:
        NaiveSyncBatchNorm(2)(torch.zeros(0, 2, 3, 5))
    except AssertionError:
        found["refused"] = True
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_over_two_processes(tmp_path):
    """Outputs and gradients are those of one process with the whole batch."""
    mp.start_processes(_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    x = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = nn.BatchNorm2d(2)
    y = whole(x)
    y.pow(3).sum().backward()
    for name in ("even", "weighted", "empty"):
        first, second = (part[name] for part in parts)
        torch.testing.assert_close(torch.cat([first[0], second[0]]), y.detach())
        torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad)
        torch.testing.assert_close(first[2] + second[2], whole.weight.grad)
        torch.testing.assert_close(first[3], whole.running_mean)
        # torch divides the running variance by n - 1 = 59 of 60 numbers, this layer by n
        biased = (whole.running_var - 0.9) * 59 / 60 + 0.9
        torch.testing.assert_close(first[4], biased)
        torch.testing.assert_close(second[4], biased)
    assert parts[0]["none"][3].tolist() == [0, 0] and parts[0]["none"][4].tolist() == [1, 1]
    assert parts[0]["refused"] and parts[1]["refused"]


def test_alone_it_is_torch_s_batch_norm():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = NaiveSyncBatchNorm(3, stats_mode="N"), nn.BatchNorm2d(3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
