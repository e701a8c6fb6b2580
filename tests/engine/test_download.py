"""Downloads, against a server in this process that breaks connections, lies and changes its files."""

import errno
import fcntl
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sam_d2.engine import download as download_module
from sam_d2.engine import transfer, weights
from sam_d2.engine.download import download
from sam_d2.engine.weights import FOLDER_VARIABLE, PUBLISHED, PublishedWeights, download_folder, sha256_of
from sam_d2.errors import UserError

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
OTHER = bytes(reversed(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.plan`` holds what goes wrong with the next requests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append((self.path, asked))
        fault = server.plan.popleft() if server.plan else {}
        if "status" in fault:
            self.send_response(fault["status"])
            if "location" in fault:
                self.send_header("Location", fault["location"])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = fault.get("content", server.content), 0
        tag = '"' + hashlib.md5(content).hexdigest() + '"'
        if asked and server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start += fault.get("shift", 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.tags:
            self.send_header("ETag", tag)
        if fault.get("length", True):
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content[start : fault.get("until", len(content))])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.ranges, server.tags, server.plan, server.asked = CONTENT, True, True, deque(), []
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def fetch(server, tmp_path):
    """``fetch()``: the file of the server, with its right sha256 unless told otherwise."""

    def fetch(name=None, sha256=SHA256, **options):
        return download(name or server.url, tmp_path, sha256=sha256, pause=0, **options)

    return fetch


@pytest.fixture
def published(server, monkeypatch):
    """The server's file under the name of published weights."""
    entry = PublishedWeights("sam_small", server.url, SHA256, len(CONTENT), "Apache-2.0")
    monkeypatch.setitem(PUBLISHED, "weights.pth", entry)


def ranges(server):
    return [asked for _, asked in server.asked]


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def expect_content(file, folder):
    assert file == folder / "weights.pth"
    assert file.read_bytes() == CONTENT
    assert names(folder) == ["weights.pth"]


class TestGood:
    def test_a_whole_file(self, server, fetch, tmp_path):
        expect_content(fetch(), tmp_path)
        assert ranges(server) == [None]

    @pytest.mark.parametrize("name", ["sam_small", "weights.pth"])
    def test_by_its_published_names(self, published, fetch, tmp_path, name):
        expect_content(fetch(name, sha256=None), tmp_path)

    def test_the_folder_is_made(self, server, tmp_path):
        assert download(server.url, tmp_path / "a" / "b").read_bytes() == CONTENT

    def test_a_good_file_is_not_downloaded_again(self, server, fetch, tmp_path):
        fetch()
        fetch()
        fetch(sha256=SHA256.upper())
        fetch(sha256=SHA256[:8])
        assert len(server.asked) == 1

    def test_the_beginning_of_a_sha256(self, server, fetch, tmp_path):
        with pytest.raises(UserError, match="expected 00000000"):
            fetch(sha256="00000000")
        expect_content(fetch(sha256=SHA256[:8]), tmp_path)

    @pytest.mark.parametrize("status", [301, 302, 307])
    def test_redirects_and_the_query_of_an_address(self, server, fetch, tmp_path, status):
        (tmp_path / "weights.pth.partial").write_bytes(CONTENT[:1000])
        server.plan.append({"status": status, "location": "/elsewhere"})
        expect_content(fetch(server.url + "?download=true"), tmp_path)
        assert server.asked == [("/weights.pth?download=true", "bytes=1000-"), ("/elsewhere", "bytes=1000-")]

    def test_no_word_about_the_length(self, server, fetch, tmp_path):
        server.plan.append({"length": False})
        expect_content(fetch(), tmp_path)

    def test_nothing_is_written_to_a_stream_that_is_no_terminal(self, fetch, capsys):
        fetch()
        assert capsys.readouterr() == ("", "")


class TestBrokenConnections:
    def test_goes_on_where_it_broke_off_twice(self, server, fetch, tmp_path, caplog):
        server.plan.extend([{"until": 30_000}, {"until": 70_000}])
        expect_content(fetch(), tmp_path)
        assert ranges(server) == [None, "bytes=30000-", "bytes=70000-"]
        assert "the connection ended after 30,000 of 102,400 bytes; trying again" in caplog.text

    def test_a_later_call_goes_on(self, server, fetch, tmp_path):
        server.plan.extend([{"until": 30_000}])
        with pytest.raises(UserError, match=r"gave up after 1 attempts .* goes on after 30,000 bytes") as caught:
            fetch(attempts=1)
        assert "\n" not in str(caught.value) and server.url in str(caught.value)
        assert (tmp_path / "weights.pth.partial").read_bytes() == CONTENT[:30_000]
        expect_content(fetch(), tmp_path)
        assert ranges(server) == [None, "bytes=30000-"]

    def test_an_unknown_length_is_known_of_published_weights(self, published, server, fetch, tmp_path):
        server.plan.append({"until": 30_000, "length": False})
        expect_content(fetch("sam_small"), tmp_path)
        assert ranges(server) == [None, "bytes=30000-"]

    def test_attempts_are_counted_while_nothing_arrives(self, server, fetch, tmp_path):
        # two bring it further and begin the count anew, then three in a row do not
        server.plan.extend([{"until": 10}, {"until": 20}, *[{"status": 503}] * 3])
        with pytest.raises(UserError, match=r"gave up after 3 attempts \(HTTP 503 Service Unavailable\)"):
            fetch(attempts=3)
        assert len(server.asked) == 4  # the fourth is the third in a row without progress

    def test_pauses_double(self, server, tmp_path, monkeypatch):
        pauses = []
        monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=pauses.append))
        server.plan.extend([{"status": 500}] * 5)
        with pytest.raises(UserError, match="gave up after 4 attempts"):
            download(server.url, tmp_path, attempts=4, pause=0.5)
        assert pauses == [0.5, 1.0, 2.0]

    def test_no_server(self, server, fetch, tmp_path):
        server.shutdown()
        server.server_close()
        with pytest.raises(UserError, match=r"gave up after 2 attempts \(.*refused\)"):
            fetch(attempts=2)
        assert names(tmp_path) == []

    def test_a_server_that_does_not_continue(self, server, fetch, tmp_path):
        server.ranges = False
        server.plan.append({"until": 30_000})
        expect_content(fetch(), tmp_path)
        assert ranges(server) == [None, "bytes=30000-"]

    def test_a_part_that_was_not_asked_for(self, server, fetch, tmp_path):
        server.plan.extend([{"until": 30_000}, {"shift": 5}])
        expect_content(fetch(), tmp_path)
        assert ranges(server) == [None, "bytes=30000-", None]


class TestPartialFiles:
    def test_complete(self, published, server, fetch, tmp_path):
        (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
        expect_content(fetch(), tmp_path)  # the length of a URL's file is not known: the server is asked
        assert ranges(server) == ["bytes=102400-"]
        (tmp_path / "weights.pth").rename(tmp_path / "weights.pth.partial")
        expect_content(fetch("sam_small"), tmp_path)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("name", [None, "sam_small"])
    def test_longer_than_the_file(self, published, server, fetch, tmp_path, name):
        (tmp_path / "weights.pth.partial").write_bytes(CONTENT + b"more")
        expect_content(fetch(name), tmp_path)
        assert ranges(server)[-1] is None

    @pytest.mark.parametrize("length", [1, 5_000, len(CONTENT)])
    def test_of_another_version_begins_anew_once(self, published, server, fetch, tmp_path, caplog, length):
        (tmp_path / "weights.pth.partial").write_bytes(OTHER[:length])
        expect_content(fetch("sam_small"), tmp_path)
        assert ranges(server)[-1] is None and len(server.asked) <= 2
        assert "do not belong together" in caplog.text

    @pytest.mark.parametrize("tags", [True, False])
    def test_the_file_changes_between_two_connections(self, server, fetch, tmp_path, tags):
        server.tags = tags
        server.plan.append({"content": OTHER, "until": 30_000})
        expect_content(fetch(), tmp_path)
        # With a tag the server sees it and sends the whole; without one the sha256 shows it, one request later.
        assert ranges(server) == [None, "bytes=30000-"] + ([] if tags else [None])

    def test_without_a_sha256_an_earlier_part_is_not_trusted(self, server, fetch, tmp_path):
        (tmp_path / "weights.pth.partial").write_bytes(OTHER[:5_000])
        server.plan.append({"until": 30_000})
        expect_content(fetch(sha256=None), tmp_path)
        assert ranges(server) == [None, "bytes=30000-"]

    def test_two_at_once(self, server, fetch, tmp_path):
        partial = tmp_path / "weights.pth.partial"
        partial.write_bytes(CONTENT[:10])
        with partial.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another download is writing"):
                fetch()
        assert partial.read_bytes() == CONTENT[:10] and server.asked == []
        expect_content(fetch(), tmp_path)


class TestBadFiles:
    def test_a_wrong_hash_keeps_nothing(self, server, fetch, tmp_path):
        server.content = OTHER
        with pytest.raises(UserError, match=rf"sha256 .* is {hashlib.sha256(OTHER).hexdigest()}, expected {SHA256}"):
            fetch()
        assert names(tmp_path) == [] and len(server.asked) == 1

    def test_a_wrong_hash_after_a_part_is_tried_once_more(self, server, fetch, tmp_path):
        server.content = OTHER
        (tmp_path / "weights.pth.partial").write_bytes(CONTENT[:10])
        with pytest.raises(UserError, match="expected"):
            fetch()
        assert names(tmp_path) == [] and ranges(server) == ["bytes=10-", None]

    @pytest.mark.parametrize("content", [OTHER, CONTENT + b"x", b""])
    def test_an_existing_bad_file_is_left_as_it_is(self, published, server, fetch, tmp_path, content):
        (tmp_path / "weights.pth").write_bytes(content)
        for name in (None, "sam_small"):
            with pytest.raises(UserError, match=r"weights\.pth exists, but is not .* Delete or rename") as caught:
                fetch(name)
            assert "\n" not in str(caught.value)
        assert (tmp_path / "weights.pth").read_bytes() == content and server.asked == []

    def test_a_folder_of_that_name(self, fetch, tmp_path):
        (tmp_path / "weights.pth").mkdir()
        with pytest.raises(UserError, match="is not a file"):
            fetch()

    @pytest.mark.parametrize("partial", [b"", CONTENT[:5_000]])
    def test_a_page_in_place_of_the_file_does_not_cost_what_is_there(self, published, server, fetch, tmp_path, partial):
        (tmp_path / "weights.pth.partial").write_bytes(partial)
        server.ranges, server.content = False, b"<html>log in</html>"
        with pytest.raises(UserError, match=r"offers 19 bytes, the published file has 102,400"):
            fetch("sam_small")
        assert [file.read_bytes() for file in tmp_path.iterdir()] == ([partial] if partial else [])

    def test_an_endless_answer_ends(self, published, server, fetch, tmp_path, monkeypatch):
        monkeypatch.setattr(transfer, "_BLOCK", 1000)
        server.plan.append({"content": CONTENT * 50, "length": False})
        written = []
        append = transfer.Transfer._append
        monkeypatch.setattr(
            transfer.Transfer, "_append", lambda self, block: (written.append(len(block)), append(self, block))
        )
        with pytest.raises(UserError, match="expected"):
            fetch("sam_small")
        assert len(CONTENT) < sum(written) <= len(CONTENT) + 1000
        assert names(tmp_path) == []


class TestRefusals:
    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_no_such_file(self, server, fetch, tmp_path, status):
        server.plan.append({"status": status})
        with pytest.raises(UserError, match=rf"weights\.pth: HTTP {status} ") as caught:
            fetch()
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == [] and len(server.asked) == 1

    @pytest.mark.parametrize("location", ["file:///etc/hosts", "ftp://127.0.0.1/weights.pth", "data:,x"])
    def test_a_redirect_away_from_the_web(self, server, fetch, tmp_path, location):
        server.plan.append({"status": 302, "location": location})
        with pytest.raises(UserError, match="HTTP 302"):
            fetch()
        assert names(tmp_path) == []

    def test_redirects_in_a_circle(self, server, fetch):
        server.plan.extend([{"status": 302, "location": "/weights.pth"}] * 30)
        with pytest.raises(UserError, match=r"HTTP 302.*loop") as caught:
            fetch()
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "name", ["sam_vit_x", "file:///etc/hosts", "ftp://host/a.pth", "http://", "http:///a.pth", "http://[a/b", ""]
    )
    def test_neither_a_name_nor_an_address(self, tmp_path, name):
        with pytest.raises(UserError, match=r"neither an http\(s\) URL nor one of sam_vit_b, sam_vit_l, sam_vit_h"):
            download(name, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("path", ["", "/", "/a/..", "/%2e%2e", "/.."])
    def test_an_address_without_a_file_name(self, tmp_path, path):
        with pytest.raises(UserError, match="does not end in a file's name"):
            download(f"http://127.0.0.1:1{path}", tmp_path)

    def test_a_name_does_not_leave_the_folder(self, server, tmp_path):
        folder = tmp_path / "inner"
        file = download(server.url.replace("weights.pth", "x%2f..%2f..%2fweights.pth"), folder)
        assert file == folder / "weights.pth" and names(tmp_path) == ["inner"]


class TestDisk:
    def test_too_little_space_is_said_before(self, server, fetch, tmp_path, monkeypatch):
        monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=102_399))
        with pytest.raises(UserError, match=r"102,400 bytes are needed and 102,399 are free"):
            fetch()
        (tmp_path / "weights.pth.partial").write_bytes(CONTENT[:1])
        expect_content(fetch(), tmp_path)

    @pytest.mark.parametrize("code, words", [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
    def test_full_on_the_way(self, fetch, tmp_path, monkeypatch, code, words):
        class Full(io.FileIO):
            def write(self, data):
                if self.tell() >= 40_000:
                    raise OSError(code, "Input/output error")
                return super().write(data[: 40_000 - self.tell()])  # as a disk does: the last write is a short one

        monkeypatch.setattr(download_module.Path, "open", lambda path, *args, **options: Full(path, "ab"))
        with pytest.raises(UserError, match=rf"partial: {words} after 40,000 bytes"):
            fetch()
        monkeypatch.undo()
        monkeypatch.setenv("no_proxy", "*")
        assert (tmp_path / "weights.pth.partial").read_bytes() == CONTENT[:40_000]
        expect_content(fetch(), tmp_path)

    def test_writes_that_take_a_part_only(self, fetch, tmp_path, monkeypatch):
        class Slow(io.FileIO):
            def write(self, data):
                return super().write(data[:1000])

        opened = type(tmp_path).open
        monkeypatch.setattr(
            download_module.Path,
            "open",
            lambda path, *args, **options: Slow(path, "ab") if "ab" in args else opened(path, *args, **options),
        )
        expect_content(fetch(), tmp_path)

    def test_a_folder_that_cannot_be_made(self, server, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"partial: cannot be written .* another folder"):
            download(server.url, tmp_path / "file" / "inner")
        assert server.asked == []


class TestPublished:
    def test_each_has_all_that_a_download_needs(self):
        names = [weights.name for weights in PUBLISHED.values()]
        assert len(set(names)) == len(names) and {"sam_vit_b", "R-50", "mask_rcnn_R_101_FPN_3x"} <= set(names)
        for file_name, published in PUBLISHED.items():
            assert published.url.startswith("https://") and published.url.endswith(f"/{file_name}")
            if published.sha256 is None:  # Detectron2 publishes none
                assert "/detectron2/" in published.url and published.size is None
            else:
                digits = 8 if "download.pytorch.org" in published.url else 64
                assert len(published.sha256) == digits and set(published.sha256) <= set("0123456789abcdef")

    def test_what_the_readme_says(self, root):
        readme = (root / "checkpoints" / "README.md").read_text()
        for file_name, published in PUBLISHED.items():
            (row,) = [line for line in readme.splitlines() if line.startswith("|") and file_name in line]
            assert published.url in row
            if published.sha256 is not None:
                assert published.sha256 in row
            if published.size is not None:
                assert f"{published.size:,}" in row
            if published.coco_ap is not None:
                assert " / ".join(map(str, published.coco_ap)) in row

    def test_sha256_of(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-4
        assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_where_downloads_go(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "named"))
        assert download_folder() == tmp_path / "named"
        monkeypatch.delenv(FOLDER_VARIABLE)
        existing = weights.checkpoint_folders()[-1]
        assert download_folder() == (existing if existing.is_dir() else tmp_path / "checkpoints")
        (tmp_path / "checkpoints").mkdir()
        assert download_folder() == tmp_path / "checkpoints"


class TestTool:
    def run(self, root, *arguments, **environment):
        command = [sys.executable, "-X", "importtime", str(root / "tools" / "download_checkpoint.py"), *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "SAM_D2_DETECTRON2": "embedded", **environment},
            cwd=root,
        )
        imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        assert not any(line.split("|")[-1].strip() == "torch" for line in imports), "torch makes it slow"
        return done.returncode, done.stdout, "\n".join(set(done.stderr.splitlines()) - set(imports))

    def test_list(self, root, tmp_path):
        (tmp_path / "sam_vit_l_0b3195.pth").touch()
        code, out, _ = self.run(root, "--list", **{FOLDER_VARIABLE: str(tmp_path), "COLUMNS": "100"})
        rows = [line for line in out.splitlines() if "sam_vit" in line]
        assert code == 0
        assert [("375" in row, "1,250" in row, "2,565" in row, "yes" in row) for row in rows] == [
            (True, False, False, False),
            (False, True, False, True),
            (False, False, True, False),
        ]

    def test_what_cannot_be_verified_is_said(self, server, root, tmp_path):
        code, out, _ = self.run(root, server.url, "--output", str(tmp_path))
        assert code == 0 and out.rstrip().endswith("not verified: no sha256 is published for it")

    def test_an_error_is_one_line_and_code_2(self, root, tmp_path):
        code, out, err = self.run(root, "sam_vit_x", "--output", str(tmp_path))
        assert (code, out) == (2, "") and err.startswith("error: sam_vit_x: neither") and "\n" not in err

    def test_a_file_that_is_there(self, root, tmp_path):
        (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"another")
        code, _, err = self.run(root, "sam_vit_b", "--output", str(tmp_path))
        assert code == 2 and "sam_vit_b_01ec64.pth exists, but is not" in err
