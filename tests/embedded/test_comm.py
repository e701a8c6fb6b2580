import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm


def test_a_single_process_needs_no_group():
    assert (comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size()) == (
        0,
        0,
        1,
        1,
    )
    assert comm.is_main_process()
    comm.synchronize()
    data = {"a": 1}
    assert comm.all_gather(data)[0] is data and comm.gather(data)[0] is data
    losses = {"loss": torch.tensor(3.0)}
    assert comm.reduce_dict(losses) is losses
    with pytest.raises(AssertionError):
        comm.get_local_process_group()


def test_shared_seed_is_drawn_from_numpy():
    np.random.seed(5)
    expected = np.random.randint(2**31)
    np.random.seed(5)
    assert comm.shared_random_seed() == expected


def _in_two_processes(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    comm.create_local_process_group(1)  # two machines of one process
    comm.create_local_process_group(1)
    np.random.seed(rank)
    losses = [("y", torch.tensor(float(rank))), ("x", torch.tensor(3.0))]  # filled in another order on rank 1
    result = {
        "ranks": (comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size()),
        "all": comm.all_gather("ab"[rank]),
        "gathered": comm.gather(rank, dst=1),
        "seed": comm.shared_random_seed(),
        "mean": comm.reduce_dict(dict(losses if rank == 0 else reversed(losses))),
        "sum": comm.reduce_dict({"x": torch.tensor(3.0)}, average=False),
    }
    comm.synchronize()
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    # forked, because that takes no second import of torch
    mp.start_processes(_in_two_processes, args=(str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["ranks"] == (0, 0, 2, 1) and second["ranks"] == (1, 0, 2, 1)
    assert first["all"] == second["all"] == ["a", "b"]
    assert first["gathered"] == [] and second["gathered"] == [0, 1]
    assert first["seed"] == second["seed"]
    assert first["mean"] == {"x": 3.0, "y": 0.5} and first["sum"] == {"x": 6.0}  # only rank 0 has the result
