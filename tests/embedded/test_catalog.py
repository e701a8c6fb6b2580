import copy
import pickle

import pytest

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog


@pytest.fixture
def name():
    name = "catalog_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_dataset_is_loaded_at_each_get(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"n": len(calls)}])
    assert name in DatasetCatalog and name in DatasetCatalog.list()
    assert calls == []
    assert DatasetCatalog.get(name) == [{"n": 1}]
    assert DatasetCatalog.get(name) == [{"n": 2}]
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog


def test_dataset_errors(name):
    with pytest.raises(KeyError, match="not registered"):
        DatasetCatalog.get(name)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, ["a list is no function"])
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)
    with pytest.raises(KeyError):
        DatasetCatalog.remove("never registered")
    assert name in str(DatasetCatalog)


def test_metadata_is_made_once(name):
    metadata = MetadataCatalog.get(name)
    assert metadata.name == name
    metadata.thing_classes = ["a"]
    assert MetadataCatalog.get(name) is metadata
    assert name in MetadataCatalog.list()
    MetadataCatalog.remove(name)
    assert MetadataCatalog.get(name).get("thing_classes") is None
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


def test_metadata_takes_an_equal_value_and_no_other(name):
    metadata = MetadataCatalog.get(name).set(thing_classes=["a"], number=3)
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match="different value"):
        metadata.thing_classes = ["b"]
    with pytest.raises(AssertionError):
        metadata.name = "another"
    assert metadata.get("number") == 3
    assert metadata.get("absent", 5) == 5


def test_missing_attribute_says_what_there_is(name):
    metadata = MetadataCatalog.get(name)
    with pytest.raises(AttributeError, match="metadata is empty"):
        _ = metadata.thing_classes
    metadata.number = 3
    with pytest.raises(AttributeError, match="number"):
        _ = metadata.thing_classes
    assert not hasattr(metadata, "thing_classes")


def test_as_dict_is_a_copy_and_metadata_can_be_copied(name):
    metadata = MetadataCatalog.get(name).set(number=3)
    values = metadata.as_dict()
    values["number"] = 4
    assert metadata.number == 3
    assert copy.deepcopy(metadata).number == 3
    assert pickle.loads(pickle.dumps(metadata)).as_dict() == metadata.as_dict()
    assert Metadata(name="x").as_dict() == {"name": "x"}
