"""Embeddings kept on disk: the same values, a key for all that decides them, damage found, a limit kept."""

import copy
import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import time

import pytest
import torch

from sam_d2.errors import UserError
from sam_d2.modeling.embedding_cache import EmbeddingCache, module_digest
from sam_d2.modeling.embedding_store import EmbeddingStore

ENTRY = 256 + 32 * 8 * 8 * 4  # header and float32 values of an embedding of the small model
FROZEN = "model.freeze=[image_encoder,prompt_encoder]"


def entries(folder):
    return sorted(folder.rglob("*.embedding"))


def counted(folder):
    return int((folder / ".bytes").read_text())


@pytest.fixture
def model(build_model):
    return build_model(FROZEN).train()


@pytest.fixture
def samples(batch, tmp_path):
    """Two samples of image files, one of them mirrored."""
    for number, sample in enumerate(batch):
        sample["file_name"] = str(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.png").write_bytes(b"image %d" % number)
        sample["cache_variant"] = ("plain", "flipped")[number]
    return batch


@pytest.fixture
def make_cache(tmp_path):
    return lambda **options: EmbeddingCache(tmp_path / "cache", **options)


@pytest.fixture
def ask(model, samples):
    """``ask(cache)``: embeddings of the two samples, and how many images the encoder was given one by one."""

    def asked(cache, model=model, samples=samples):
        counts = []
        hook = model.image_encoder.register_forward_hook(lambda _, images, __: counts.append(len(images[0])))
        found = cache.embeddings(model, samples)
        hook.remove()
        assert set(counts) <= {1}, "images are encoded by themselves"
        return found, len(counts)

    return asked


def test_the_second_time_it_is_read_and_the_bits_are_those_of_the_encoder(model, samples, make_cache, ask):
    images = model.preprocess(samples).tensor
    expected = torch.cat([model.encode(images[row : row + 1]) for row in range(2)])
    first, encoded = ask(make_cache())
    assert encoded == 2 and torch.equal(first, expected)
    cache = make_cache()
    again, encoded = ask(cache)
    assert encoded == 0 and torch.equal(again, expected)
    assert (cache.found, cache.added, cache.left_out) == (2, 0, 0)
    assert again.dtype == torch.float32 and again.is_contiguous()


def test_bfloat16_is_rounded_the_first_time_too(model, samples, make_cache, ask):
    first, _ = ask(make_cache(dtype="bfloat16"))
    again, encoded = ask(make_cache(dtype="bfloat16"))
    exact = model.encode(model.preprocess(samples).tensor)
    assert encoded == 0 and torch.equal(first, again)
    assert torch.equal(first, first.bfloat16().float()) and not torch.equal(first, exact)
    torch.testing.assert_close(first, exact, rtol=2**-8, atol=1e-5)
    _, encoded = ask(make_cache())
    assert encoded == 2, "float32 has entries of its own"


@pytest.mark.parametrize("change", ["weight", "file", "variant", "size", "pixel_mean", "setting", "autocast", "tf32"])
def test_what_decides_an_embedding_decides_the_entry(model, samples, make_cache, ask, tmp_path, change):
    ask(make_cache())
    if change == "weight":
        with torch.no_grad():  # by one bit
            bias = model.image_encoder.neck[1].bias
            bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    elif change == "file":
        (tmp_path / "0.png").write_bytes(b"edited!")
    elif change == "variant":
        samples[0]["cache_variant"] = "flipped"
    elif change == "size":  # of the annotations: the image has to be read again to tell who is right
        samples[0]["width"] += 1
    elif change == "pixel_mean":
        model.pixel_mean += 1
    elif change == "setting":
        model.image_encoder.blocks[0].attn.scale *= 2
    elif change == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change == "autocast"):
            _, encoded = ask(make_cache())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert encoded == (1 if change in ("file", "variant", "size") else 2)


@pytest.mark.parametrize("change", ["in place", "by other tensors", "another encoder", "pixel_mean"])
def test_weights_are_hashed_again_where_they_change(model, make_cache, ask, change, monkeypatch):
    cache = make_cache()
    before, _ = ask(cache)
    other = copy.deepcopy(model.image_encoder)
    with torch.no_grad():
        other.neck[0].weight[0, 0] += 1
    if change == "in place":
        model.image_encoder.load_state_dict(other.state_dict())
    elif change == "by other tensors":
        model.image_encoder.load_state_dict(other.state_dict(), assign=True)
    elif change == "another encoder":
        model.image_encoder = other
    else:
        model.pixel_mean += 1
    found, encoded = ask(cache)
    assert encoded == 2 and not torch.equal(found, before)
    monkeypatch.setattr("sam_d2.modeling.embedding_cache.module_digest", lambda _: pytest.fail("hashed again"))
    again, encoded = ask(cache)
    assert encoded == 0 and torch.equal(again, found)


def test_a_file_is_hashed_again_only_where_it_changed(make_cache, ask, samples, tmp_path, monkeypatch):
    cache = make_cache()
    ask(cache)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("read again"))
    assert ask(cache)[1] == 0
    monkeypatch.undo()
    times = (tmp_path / "1.png").stat()
    (tmp_path / "1.png").write_bytes(b"IMAGE 1")  # as long as before
    os.utime(tmp_path / "1.png", ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert ask(cache)[1] == 1
    (tmp_path / "1.png").rename(tmp_path / "moved.png")
    samples[1]["file_name"] = str(tmp_path / "moved.png")
    assert ask(cache)[1] == 0, "the content counts, not the name"


class NotToBeRead:
    """An image of which the shape alone may be asked."""

    def __init__(self, image):
        self.shape = image.shape


def test_the_pixels_of_a_cached_image_are_not_asked_for(model, samples, make_cache):
    model.embedding_cache = make_cache()
    expected = model(samples)
    images = [NotToBeRead(sample["image"]) for sample in samples]
    found = model([{**sample, "image": image} for sample, image in zip(samples, images, strict=True)])
    assert found and all(torch.equal(found[name], expected[name]) for name in expected)
    model.embedding_cache = None
    with pytest.raises(AttributeError, match="'to'"):
        model([{**samples[0], "image": images[0]}])


def test_a_lookup_knows_what_is_kept_and_reads_no_entry(model, samples, make_cache, tmp_path):
    cache = make_cache()
    is_cached = pickle.loads(pickle.dumps(cache.lookup(model)))  # as a loader's spawned process has it
    assert [is_cached(sample) for sample in samples] == [False, False]
    cache.embeddings(model, samples[:1])
    assert [is_cached(sample) for sample in samples] == [True, False]
    for file in entries(tmp_path):
        file.write_bytes(b"damaged")
    assert is_cached(samples[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cache.lookup(model)(samples[0]), "of another precision"
    for change in ({"cache_variant": "flipped"}, {"height": 1}, {"file_name": str(tmp_path / "none.png")}):
        assert not is_cached({**samples[0], **change})
    (tmp_path / "0.png").write_bytes(b"edited!")
    assert not is_cached(samples[0])


DAMAGE = {
    "a flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "cut off": lambda data: data[:-100],
    "empty": lambda data: b"",
    "shorter than its header": lambda data: data[:50],
    "another header": lambda data: b"[1]".ljust(256) + data[256:],
    "no JSON": lambda data: b"\xff" * 256 + data[256:],
    "another version": lambda data: data.replace(b'"version": 2', b'"version": 1', 1),
    "a longer shape": lambda data: data.replace(b"[32, 8, 8]", b"[32, 8, 9]", 1),
    "a shape of as many": lambda data: data.replace(b"[32, 8, 8]", b"[8, 32, 8]", 1),
    "no dtype": lambda data: data.replace(b"float32", b"float3:", 1),
    "another dtype": lambda data: data.replace(b"float32", b"float64", 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_computed_again(make_cache, ask, tmp_path, damage, caplog):
    expected, _ = ask(make_cache())
    file = entries(tmp_path)[0]
    data = file.read_bytes()
    file.write_bytes(damage(data))
    assert file.read_bytes() != data
    cache = make_cache()
    found, encoded = ask(cache)
    assert encoded == 1 and torch.equal(found, expected)
    with caplog.at_level("INFO", logger="sam_d2"):
        cache.report()
    assert "1 read, 1 added, 1 found damaged and computed again" in caplog.text
    assert ask(make_cache())[1] == 0


def test_when_full_it_stops_adding_and_counts_and_removes_nothing(make_cache, ask, tmp_path, caplog):
    one = 1.5 * ENTRY / 2**30
    cache = make_cache(max_gib=one)
    first, encoded = ask(cache)
    before = entries(tmp_path)
    assert encoded == 2 and len(before) == 1 and "is full (train.embedding_cache.max_gib)" in caplog.text
    again, encoded = ask(cache)
    assert encoded == 1 and torch.equal(first, again)
    assert (cache.found, cache.added, cache.left_out) == (1, 1, 2)
    assert caplog.text.count("is full") == 1
    assert ask(make_cache(max_gib=one))[1] == 1, "what is there counts for the next run"
    assert entries(tmp_path) == before
    assert ask(make_cache(max_gib=2 * one))[1] == 1 and len(entries(tmp_path)) == 2


def test_the_limit_holds_for_all_encoders_of_a_folder(tmp_path):
    first = EmbeddingStore(tmp_path, "one", max_bytes=1000)
    second = EmbeddingStore(tmp_path, "two", max_bytes=1000)
    assert first.write("aa", torch.zeros(100))  # 256 + 400 bytes
    assert not second.write("bb", torch.zeros(100))
    assert second.write("cc", torch.zeros(22))  # 256 + 88: 1000 in all
    assert sum(file.stat().st_size for file in entries(tmp_path)) == 1000


def test_what_is_written_again_counts_once_and_what_is_removed_not_at_all(tmp_path):
    store = EmbeddingStore(tmp_path, "key", max_bytes=2 * 656)
    for _ in range(3):
        assert store.write("aa", torch.zeros(100))  # 256 + 400 bytes
        assert counted(tmp_path) == 656
    file = entries(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"1")
    assert store.read("aa") is None and counted(tmp_path) == 0
    assert store.read("aa") is None and store.damaged == 1
    assert store.write("aa", torch.zeros(100)) and store.write("bb", torch.ones(100)) and counted(tmp_path) == 1312
    assert not store.write("cc", torch.zeros(1)) and len(entries(tmp_path)) == 2
    assert store.write("aa", torch.ones(100)) and torch.equal(store.read("aa"), torch.ones(100)), "in place of another"


@pytest.mark.parametrize("content", [b"", b"12x", b"\xff" * 20])
def test_a_damaged_count_is_counted_again(tmp_path, content):
    store = EmbeddingStore(tmp_path, "key", max_bytes=1000)
    assert store.write("aa", torch.zeros(100))
    (tmp_path / ".bytes").write_bytes(content)
    assert not store.write("bb", torch.zeros(100)), "656 of 1000 are used"
    assert store.write("cc", torch.zeros(22)) and counted(tmp_path) == 1000


def test_the_count_is_never_shorter(tmp_path):
    """A process that is killed while it counts leaves no file that reads as nothing."""
    store = EmbeddingStore(tmp_path, "key", max_bytes=1000)
    sizes = {(tmp_path / ".bytes").stat().st_size}
    for number in range(3):
        store.write(f"{number:02d}", torch.zeros(1))
        sizes.add((tmp_path / ".bytes").stat().st_size)
    assert sizes == {20}


def test_a_folder_that_is_deleted_meanwhile_begins_again(tmp_path):
    store = EmbeddingStore(tmp_path / "cache", "key", max_bytes=1000)
    assert store.write("aa", torch.zeros(100))
    shutil.rmtree(tmp_path / "cache")
    assert store.read("aa") is None
    assert store.write("bb", torch.zeros(100)) and counted(tmp_path / "cache") == 656
    assert torch.equal(store.read("bb"), torch.zeros(100))


def test_what_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    store = EmbeddingStore(tmp_path, "key", max_bytes=10_000)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"):
        store.write("aa", torch.zeros(100))
    assert counted(tmp_path) == 0 and not list(tmp_path.rglob("*aa.*"))


def _write_for_ever(folder, started):
    store = EmbeddingStore(folder, "key", max_bytes=2**40)
    started.set()
    while True:
        for number in range(20):
            store.write(f"{number:02d}", torch.full((256, 1000), float(number)))


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    started = context.Event()
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, started)) for _ in range(2)]
    for writer in writers:
        writer.start()
    assert started.wait(60)
    store = EmbeddingStore(tmp_path, "key", max_bytes=2**40)
    deadline = time.monotonic() + 60
    while len(entries(tmp_path)) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    for number in range(20):
        found = store.read(f"{number:02d}")
        assert found is not None and torch.equal(found, torch.full((256, 1000), float(number)))
    assert store.damaged == 0
    assert store.write("zz", torch.zeros(1)), "the lock went with its holder"


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    (tmp_path / "key" / "aa").mkdir(parents=True)
    old, new = (tmp_path / "key" / "aa" / f".aa.embedding.host.{pid}.tmp" for pid in (1, 2))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    EmbeddingStore(tmp_path, "other", max_bytes=1)
    assert new.exists() and not old.exists()


def test_concurrent_processes_fill_one_cache(in_two_processes, build_model, batch, tmp_path):
    model = build_model(FROZEN).train()
    for number, sample in enumerate(batch):
        sample["file_name"], sample["cache_variant"] = str(tmp_path / f"{number}.png"), "plain"
        (tmp_path / f"{number}.png").write_bytes(b"image %d" % number)

    def fill():
        cache = EmbeddingCache(tmp_path / "cache")
        return cache.embeddings(model, batch)

    first, second = in_two_processes(fill)
    assert torch.equal(first, second) and len(entries(tmp_path)) == 2
    assert counted(tmp_path / "cache") == 2 * ENTRY


def test_losses_and_gradients_are_those_without_a_cache(model, samples, make_cache):
    """Frozen, one image at a time: rounding alone may differ, by the size of the batch."""

    def step():
        model.zero_grad()
        losses = model(samples)
        sum(losses.values()).backward()
        return [*losses.values(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = step()
    model.embedding_cache = make_cache()
    for found in (step(), step()):
        assert len(found) == len(expected) > 10
        for value, without in zip(found, expected, strict=True):
            torch.testing.assert_close(value, without, rtol=1e-5, atol=1e-6)
    assert (model.embedding_cache.added, model.embedding_cache.found) == (2, 2)


def test_a_test_uses_it_where_its_figures_stay(model, samples, make_cache):
    model.eval()
    for sample in samples:
        sample["instances"]._image_size = (sample["height"], sample["width"])
    for cache, expected in ((make_cache(), 2), (make_cache(dtype="bfloat16"), 0)):
        model.embedding_cache = cache
        model(samples)
        assert cache.added == expected
    model.embedding_cache = cache = make_cache()
    del samples[0]["cache_variant"]  # an image that is no file, such as the Predictor's
    model(samples)
    assert cache.found == 0


def test_a_training_sample_that_is_not_named_is_refused(model, samples, make_cache):
    model.embedding_cache = make_cache()
    del samples[1]["cache_variant"]
    with pytest.raises(UserError, match=r"1\.png: train\.cache_embeddings=True needs .*PromptableMapper"):
        model(samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, r"dtype='float16': expected float32 or bfloat16"), ({"max_gib": 0}, "more than 0")],
)
def test_options_that_cannot_be(make_cache, options, message):
    with pytest.raises(UserError, match=message):
        make_cache(**options)


def test_a_full_disk_is_one_message(make_cache, ask, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EmbeddingStore, "write", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)\. Free some space"):
        ask(make_cache())


def test_progress_while_it_fills(make_cache, ask, monkeypatch, caplog):
    monkeypatch.setattr("sam_d2.modeling.embedding_cache._PROGRESS_SECONDS", -1)
    with caplog.at_level("INFO", logger="sam_d2"):
        ask(make_cache(expected=4))
    assert "Embedding cache: 2 of up to 4 seen, 2 added, 0.0 s each" in caplog.text


def test_digest_of_a_module_by_hand():
    layer = torch.nn.LayerNorm(2, eps=0.5)
    digest = module_digest(layer)
    assert digest == module_digest(torch.nn.LayerNorm(2, eps=0.5).eval()) and len(digest) == 64
    assert digest != module_digest(torch.nn.LayerNorm(2, eps=0.25))
    assert digest != module_digest(torch.nn.LayerNorm(2, eps=0.5).bfloat16())
    assert digest != hashlib.sha256().hexdigest()


class Part(torch.nn.Module):
    def __init__(self, sizes, index, function=None):
        super().__init__()
        self.sizes = sizes
        self.act = (torch.nn.functional.gelu, function)
        self.register_buffer("index", torch.tensor(index), persistent=False)


def test_digest_of_lists_and_of_what_no_checkpoint_has():
    digest = module_digest(Part([1, (2.0, "a")], 3))
    assert digest == module_digest(Part([1, (2.0, "a")], 3, object())), "an object's address is nobody's setting"
    assert digest != module_digest(Part([1, (2.5, "a")], 3))
    assert digest != module_digest(Part([1, (2.0, "a")], 4))
