"""Checkpoints that would run a program, or corrupt memory, if they were read as Python reads pickles."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.checkpoint_file import load_checkpoint_file, weights_in
from sam_d2.errors import UserError


class Call:
    """An object whose pickle calls a function, and then gives what it returns a state."""

    def __init__(self, function, *arguments, state=None):
        self.recipe = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.recipe


def global_opcode(canary):
    return b"cos\nmkdir\n(S'" + str(canary).encode() + b"'\ntR."


def stack_global(canary):
    words = b"".join(b"\x8c" + bytes([len(word)]) + word for word in (b"os", b"mkdir"))
    name = str(canary).encode()
    return b"\x80\x04" + words + b"\x93X" + struct.pack("<I", len(name)) + name + b"\x85R."


def inst_opcode(canary):
    return b"(S'" + str(canary).encode() + b"'\nios\nmkdir\n."


def obj_opcode(canary):
    return b"(cos\nmkdir\nS'" + str(canary).encode() + b"'\no."


def by_eval(canary):
    return pickle.dumps(Call(eval, f"__import__('os').mkdir({str(canary)!r})"), 2)


def by_exec_in_a_weight(canary):
    return pickle.dumps({"model": {"weight": Call(exec, f"import os; os.mkdir({str(canary)!r})")}}, 2)


def by_getattr(canary):
    """Of an admitted class an attribute, by which anything can be reached."""
    return b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR."


def by_build_of_a_dict(canary):
    return pickle.dumps(Call(nn.Linear, 1, 1, state={"forward": Call(os.mkdir, str(canary))}), 2)


def by_torch_load(canary):
    """A pickle inside of a pickle: torch's own unpickler of storages reads the inner one."""
    inner = io.BytesIO()
    torch.save(Call(os.mkdir, str(canary)), inner)
    return pickle.dumps(Call(torch.storage._load_from_bytes, inner.getvalue()), 2)


FORMS = [
    global_opcode,
    stack_global,
    inst_opcode,
    obj_opcode,
    by_eval,
    by_exec_in_a_weight,
    by_getattr,
    by_build_of_a_dict,
    by_torch_load,
]


def in_zip(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["pth", "pyth", "pkl"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_hostile_file_is_run(form, zipped, suffix, tmp_path, canary):
    file = tmp_path / f"hostile.{suffix}"
    content = form(canary)
    file.write_bytes(in_zip(content) if zipped else content)
    with pytest.raises(UserError, match=rf"hostile\.{suffix}: not a") as caught:
        Checkpointer(nn.Linear(1, 1)).load(str(file))
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_the_test_is_worth_something(form, tmp_path):
    """Python itself runs these files."""
    made = tmp_path / "made"
    try:
        found = pickle.loads(form(made))
    except Exception:
        found = None
    assert made.exists() or found is type


class TestArrays:
    """Of ``.pkl``: numpy would take the bytes of these for pointers, or do as much work as they say."""

    RECONSTRUCT = np.zeros(0).__reduce__()[0]

    def refused(self, tmp_path, content, words):
        file = tmp_path / "hostile.pkl"
        file.write_bytes(pickle.dumps({"model": {"weight": content}, "__author__": "x"}))
        with pytest.raises(UserError, match=rf"hostile\.pkl: not a pickle of arrays \(.*{words}"):
            Checkpointer(nn.Linear(1, 1)).load(str(file))

    def test_an_array_made_of_bytes_as_pointers(self, tmp_path):
        self.refused(tmp_path, Call(np.ndarray, (1,), "O", b"A" * 8), "not callable")

    def test_a_dtype_of_objects_that_says_that_it_has_none(self, tmp_path):
        lying = Call(np.dtype, "O", False, True, state=(3, "|", None, None, None, -1, -1, 0))
        self.refused(
            tmp_path,
            Call(self.RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), lying, False, b"A" * 8)),
            "a dtype 'O', which is none of numbers",
        )

    def test_a_dtype_of_numbers_that_says_that_it_has_objects(self, tmp_path):
        lying = Call(np.dtype, "f8", False, True, state=(3, "<", None, None, None, -1, -1, 63))
        self.refused(tmp_path, lying, "it changes a dtype")

    def test_objects(self, tmp_path):
        self.refused(tmp_path, np.array([{}], dtype=object), "a dtype 'O8'")

    def test_more_than_the_file_has(self, tmp_path):
        self.refused(tmp_path, Call(self.RECONSTRUCT, np.ndarray, (10**13,), b"b"), "otherwise than numpy does")
        plain = Call(np.dtype, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
        state = (1, (10**13,), plain, False, b"A" * 8)
        self.refused(
            tmp_path, Call(self.RECONSTRUCT, np.ndarray, (0,), b"b", state=state), "other bytes than its shape"
        )

    def test_a_memo_of_terabytes(self, tmp_path):
        """Python makes the list as long as the index says: here 17 GB, of 10 bytes."""
        file = tmp_path / "hostile.pkl"
        file.write_bytes(b"\x80\x02}r\x00\x00\x00\x80.")
        with pytest.raises(UserError, match=r"hostile\.pkl: .*it keeps more objects than it has bytes"):
            Checkpointer(nn.Linear(1, 1)).load(str(file))

    def test_a_second_value(self, tmp_path):
        plain = Call(np.dtype, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
        array = Call(self.RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), plain, False, b"A" * 8))
        content = pickle.dumps(array, 3)
        again = pickle.dumps((1, (2,), plain, False, b"A" * 8), 3)[2:-1]
        file = tmp_path / "hostile.pkl"
        file.write_bytes(content[:-1] + again + b"b.")
        with pytest.raises(UserError, match="it changes an array"):
            Checkpointer(nn.Linear(1, 1)).load(str(file))


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(2, 3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    ],
    ids=["one number as 4 TB", "sparse", "meta", "quantized"],
)
def test_tensors_that_are_no_weights(weight, tmp_path):
    torch.save({"model": {"weight": weight}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: its 'weight' is no weight that the file holds whole|safely"):
        weights_in(load_checkpoint_file(tmp_path / "a.pth"), tmp_path / "a.pth")
