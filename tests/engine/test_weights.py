"""Where weights are looked for, and what is said when they are not there."""

import pytest

from sam_d2.engine.weights import FOLDER_VARIABLE, PUBLISHED, checkpoint_folders, find_weights
from sam_d2.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without weights, and no folder named by the environment."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def test_a_path_or_a_name_in_a_folder(tmp_path, monkeypatch):
    named = tmp_path / "named"
    for folder in (named, tmp_path / "work" / "checkpoints", tmp_path / "work"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.pth").touch()
    monkeypatch.setenv(FOLDER_VARIABLE, str(named))
    assert find_weights(str(named / "mine.pth")) == named / "mine.pth"
    assert find_weights("mine.pth").resolve() == tmp_path / "work" / "mine.pth"
    (tmp_path / "work" / "mine.pth").unlink()
    assert find_weights("mine.pth") == named / "mine.pth"
    (named / "mine.pth").unlink()
    assert find_weights("mine.pth") == tmp_path / "work" / "checkpoints" / "mine.pth"


@pytest.mark.parametrize("name", ["sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"])
def test_published_weights_come_with_their_address(tmp_path, monkeypatch, name):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as caught:
        find_weights(name)
    message = str(caught.value)
    assert message.startswith(f"Checkpoint {name} is not found")
    assert f"Download https://dl.fbaipublicfiles.com/segment_anything/{name} into {tmp_path}/" in message
    assert "init_checkpoint=''" in message and "\n" not in message
    assert all(str(folder) in message for folder in checkpoint_folders())


def test_another_name_gives_no_address():
    with pytest.raises(UserError, match=r"my/own\.pth is not found.*existing file, or to ''") as caught:
        find_weights("my/own.pth")
    assert "http" not in str(caught.value)


def test_a_name_beside_it_is_suggested(tmp_path):
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(UserError, match=rf"Did you mean 'model_final\.pth', which lies in {tmp_path}\? Set train"):
        find_weights(str(tmp_path / "model_fnal.pth"))


def test_a_folder_is_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is not found"):
        find_weights(str(tmp_path))


def test_licences_are_known():
    licences = {weights.name: weights.licence for weights in PUBLISHED.values()}
    assert licences["sam_vit_b"] == "Apache-2.0" and licences["mask_rcnn_R_50_FPN_3x"] == "CC-BY-SA-3.0"
    assert set(licences.values()) == {"Apache-2.0", "BSD-3-Clause", "CC-BY-SA-3.0", "not stated"}


@pytest.mark.parametrize("scheme", ["detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"])
def test_an_address_is_looked_for_by_the_name_of_its_file(tmp_path, monkeypatch, scheme):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"R-50.pkl is not found .*python tools/download_checkpoint.py R-50 does"):
        find_weights(f"{scheme}ImageNetPretrained/MSRA/R-50.pkl")
    with pytest.raises(UserError, match=r"download_checkpoint.py https://dl.fbai\S+/detectron2/a/b/model_0.pkl"):
        find_weights(f"{scheme}a/b/model_0.pkl")
    (tmp_path / "R-50.pkl").touch()
    assert find_weights(f"{scheme}ImageNetPretrained/MSRA/R-50.pkl") == tmp_path / "R-50.pkl"
