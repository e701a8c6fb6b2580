import pytest


@pytest.fixture
def canary(tmp_path):
    """A folder that a hostile file makes if any of it is run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the hostile file has run"
