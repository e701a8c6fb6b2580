"""Files are there whole or not at all."""

import pytest

from sam_d2.atomic import write_atomically


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_what_appears_meanwhile_is_kept_where_nothing_is_to_be_replaced(tmp_path):
    write_atomically(tmp_path / "new" / "a.json", b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "new" / "a.json", b"second", replace=False)
    assert (tmp_path / "new" / "a.json").read_bytes() == b"first"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.json"]
