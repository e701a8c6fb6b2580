"""Files that are small and would fill the memory, or that are nested deeper than Python can follow."""

import json
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

from sam_d2.data.dataset_file import load_dataset_file
from sam_d2.data.edge_errors import read_edge_errors
from sam_d2.data.image import MAX_PIXELS, read_image
from sam_d2.data.manifest import read_manifest
from sam_d2.data.prompt_boxes import PromptBoxes
from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.engine.whole_checkpoint import last_checkpoint, whole_checkpoint
from sam_d2.errors import UserError
from sam_d2.evaluation import report_data
from sam_d2.evaluation.report_data import read_curves, read_evaluation
from sam_d2.evaluation.results import read_report
from sam_d2.modeling.embedding_store import EmbeddingStore

MEGABYTE = 1 << 20


@pytest.fixture
def little_memory():
    """What a test of a bomb may take: a thousandth of what the bomb would."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MEGABYTE


class TestZip:
    def test_a_checkpoint_whose_members_inflate(self, tmp_path, little_memory):
        whole, packed = tmp_path / "whole.pth", tmp_path / "packed.pth"
        torch.save({"a": torch.zeros(10 * MEGABYTE)}, whole)
        with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
            for name in archive.namelist():
                with archive.open(name) as source, other.open(name, "w") as target:
                    while block := source.read(MEGABYTE):
                        target.write(block)
        assert packed.stat().st_size < MEGABYTE
        assert load_checkpoint_file(whole)["a"].shape == (10 * MEGABYTE,)
        with pytest.raises(UserError, match=r"packed\.pth: it would unpack to 419\d{5} bytes"):
            load_checkpoint_file(packed)

    def test_members_that_share_their_bytes(self, tmp_path):
        """Two entries of the directory on one member: zip bombs of other kinds need no compression."""
        file = tmp_path / "shared.pth"
        torch.save({"a": torch.zeros(1000)}, file)
        content = file.read_bytes()
        end = content.rindex(b"PK\x05\x06")
        size, begin = struct.unpack("<II", content[end + 12 : end + 20])
        directory = content[begin : begin + size] * 50
        count = struct.unpack("<H", content[end + 10 : end + 12])[0] * 50
        tail = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), begin, 0)
        file.write_bytes(content[:begin] + directory + b"PK\x05\x06" + tail)
        with pytest.raises(UserError, match=r"shared\.pth: (it would unpack|not a checkpoint)"):
            load_checkpoint_file(file)

    def test_an_evaluation(self, tmp_path, monkeypatch):
        file = tmp_path / "instances_box.npz"
        np.savez_compressed(file, info=np.zeros(5 * MEGABYTE, np.uint8))
        assert file.stat().st_size < MEGABYTE // 10
        monkeypatch.setattr(report_data, "_MAX_UNPACKED", 4 * MEGABYTE)
        with pytest.raises(UserError, match=r"instances_box\.npz: it would unpack to 52\d{5} bytes"):
            read_evaluation(file)

    @pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(1.5,)", "__import__('os')"])
    def test_a_header_that_says_more_than_there_is(self, shape, tmp_path, canary):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("info.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(UserError, match=r"a\.npz: not an evaluation that can be read"):
            read_evaluation(tmp_path / "a.npz")

    def test_objects_in_an_evaluation(self, tmp_path):
        np.savez(tmp_path / "a.npz", info=np.array([{}], dtype=object))
        with pytest.raises(UserError, match=r"a\.npz: not an evaluation .*allow_pickle=False"):
            read_evaluation(tmp_path / "a.npz")


@pytest.mark.parametrize("name", [b"", b"model_0000003.pth" + b" " * 5000])
def test_a_last_checkpoint_of_300_mebibytes(name, tmp_path, little_memory):
    for step in (3, 7):
        torch.save({"model": {}}, tmp_path / f"model_{step:07d}.pth")
    with (tmp_path / "last_checkpoint").open("wb") as file:
        file.write(name)
        file.truncate(300 * MEGABYTE)
    found, (problem,) = whole_checkpoint(tmp_path)
    assert found == last_checkpoint(tmp_path) == tmp_path / "model_0000007.pth"
    assert f"{tmp_path / 'last_checkpoint'} is damaged (longer than 4096 bytes)" in problem


def png(width, height, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


class TestImages:
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [13378, 60_000, 2**31 - 1])
    def test_more_pixels_than_an_image_may_have(self, side, tmp_path, little_memory):
        (tmp_path / "bomb.png").write_bytes(png(side, side))
        assert side**2 > MAX_PIXELS
        with pytest.raises(UserError, match=rf"bomb\.png: .*(\({side**2} pixels\)|{side**2} pixels)"):
            read_image(tmp_path / "bomb.png")

    def test_the_limit_is_ours(self, tmp_path, monkeypatch):
        """A program that has lifted Pillow's limit has not lifted this one."""
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
        (tmp_path / "bomb.png").write_bytes(png(13378, 13378))
        with pytest.raises(UserError, match=rf"it has {13378**2} pixels, more than {MAX_PIXELS}\. Cut it into tiles"):
            read_image(tmp_path / "bomb.png")

    def test_text_that_inflates(self, tmp_path):
        text = b"Comment\0\0" + zlib.compress(b"a" * (100 * MEGABYTE), 9)
        extra = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        (tmp_path / "bomb.png").write_bytes(png(4, 4, extra))
        with pytest.raises(UserError, match=r"bomb\.png: not a readable image"):
            read_image(tmp_path / "bomb.png")

    def test_programs_that_are_images(self, tmp_path, canary):
        """Pillow gives EPS to Ghostscript, which runs it."""
        (tmp_path / "a.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
            b"(%pipe%mkdir " + str(canary).encode() + b") (w) file closefile\nshowpage\n%%EOF\n"
        )
        with pytest.raises(UserError, match=r"a\.png: not a readable image"):
            read_image(tmp_path / "a.png")


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 5000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"a": ' * 50_000 + "1" + "}" * 50_000,
        f'{{"version": {HUGE}}}',
        "\ufeff" + DEEP,
        f'[{{"image_id": {HUGE}}}]',
        '{"version": 1e999}',
        '{"images": ' + DEEP + "}",
    ],
    ids=["lists", "objects", "digits", "byte order mark", "digits in a row", "infinite", "in COCO"],
)
@pytest.mark.parametrize(
    "read",
    [
        load_dataset_file,
        PromptBoxes,
        read_manifest,
        read_report,
        lambda path: read_edge_errors(path, key="errors"),
    ],
    ids=["dataset", "results", "manifest", "report", "edge errors"],
)
def test_json_that_no_reader_can_follow(read, content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read(tmp_path / "a.json")


def test_a_line_of_metrics_that_cannot_be_read_is_passed_over(tmp_path):
    lines = [DEEP, HUGE, f'{{"iteration": 1, "loss": {HUGE[:4000]}}}', '{"iteration": 2, "loss": 3}']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert read_curves(tmp_path / "metrics.json") == {"loss": [(2, 3.0)]}


@pytest.mark.parametrize(
    "header",
    [
        {"dtype": "load"},
        {"dtype": "hub"},
        {"dtype": 5},
        {"dtype": "qint8"},
        {"shape": [10**12]},
        {"shape": "x"},
        {"shape": [-1, -1]},
        {"crc32": "x"},
        {"dtype": ["float32"]},
    ],
    ids=str,
)
def test_a_hostile_entry_of_the_embedding_cache_is_encoded_again(header, tmp_path):
    store = EmbeddingStore(tmp_path, "encoder", max_bytes=MEGABYTE)
    values = bytes(16)
    path = store._path("0123")
    path.parent.mkdir()

    def write(entry):
        said = json.dumps([entry["shape"], entry["dtype"]]).encode()
        entry = {
            "crc32": zlib.crc32(values, zlib.crc32(said)),
            **entry,
        }  # as its writer makes it, unless it says otherwise
        path.write_bytes(json.dumps(entry).encode().ljust(256) + values)

    sound = {"version": 2, "shape": [2, 2], "dtype": "float32"}
    write(sound)
    assert store.read("0123").tolist() == [[0.0, 0.0], [0.0, 0.0]]
    write({**sound, **header})
    assert store.read("0123") is None and store.damaged == 1 and not path.exists()
