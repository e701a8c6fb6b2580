import builtins
import importlib
import itertools
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import DictConfig, ListConfig

import detectron2
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.config.instantiate import dump_dataclass


@pytest.fixture
def configs(tmp_path):
    """Write a small tree of config files: a leaf that derives from common/ and from its neighbour."""
    files = {
        "leaf.py": """
            from .common.train import train, plain
            from .common.models.tiny import model
            from .neighbour import model as other
            train.steps = 7
            _hidden = dict(a=1)
            number = 3
            listed = [1, 2]
        """,
        "neighbour.py": """
            from .common.models.tiny import model
            model.x = "changed"
        """,
        "common/train.py": """
            train = dict(steps=5, folder="out")
            plain = dict(a=dict(b=1))
        """,
        "common/models/tiny.py": """
            from itertools import count
            from types import SimpleNamespace
            from detectron2.config import LazyCall as L
            from ..train import train
            model = L(SimpleNamespace)(x=train.folder, y="${.x}", inner=L(count)(start=3))
        """,
        "folder_import.py": "from . import common",
        "another_folder_import.py": "from .common.models import tiny",
        "missing_import.py": "from .common.nothing import x",
        "missing_name.py": "from .common.train import nothing",
        "broken.py": "x = (",
        "broken_import.py": "from .broken import x",
        "rel.py": """
            from detectron2.config import LazyConfig
            train = LazyConfig.load_rel("./common/train.py", "train")
        """,
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line.removeprefix(" " * 12) for line in text.strip().splitlines()))
    return tmp_path


class TestLoad:
    def test_a_leaf_with_relative_imports(self, configs):
        cfg = LazyConfig.load(str(configs / "leaf.py"))
        assert isinstance(cfg, DictConfig) and set(cfg) == {"train", "plain", "model", "other"}
        assert cfg.train == {"steps": 7, "folder": "out"} and cfg.plain.a.b == 1
        # each import ran the file anew: the neighbour's change is the neighbour's alone
        assert (cfg.model.x, cfg.other.x, cfg.other.y) == ("out", "changed", "changed")
        assert cfg.model._target_ is SimpleNamespace and cfg.model.inner._target_ is itertools.count
        cfg.train.steps = 8
        assert LazyConfig.load(str(configs / "leaf.py")).train.steps == 7

    def test_in_the_working_directory(self, configs, monkeypatch):
        monkeypatch.chdir(configs)
        assert LazyConfig.load("leaf.py").train.steps == LazyConfig.load("./leaf.py").train.steps == 7

    def test_keys(self, configs):
        file = str(configs / "leaf.py")
        train, listed = LazyConfig.load(file, ("train", "listed"))
        assert train.steps == 7 and listed == [1, 2]
        assert LazyConfig.load(file, "_hidden") == {"a": 1}
        assert isinstance(LazyConfig.load(file, "_hidden"), DictConfig)
        with pytest.raises(KeyError):
            LazyConfig.load(file, "nothing")

    def test_load_rel(self, configs):
        assert LazyConfig.load(str(configs / "rel.py")).train.steps == 5

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("folder_import.py", ImportError, "(?i)relative import"),
            ("another_folder_import.py", ImportError, "(?i)relative import"),
            ("missing_import.py", ImportError, r"nothing\.py does not exist"),
            ("missing_name.py", (ImportError, KeyError), "nothing"),
            ("broken.py", SyntaxError, r"broken\.py"),
            ("broken_import.py", SyntaxError, r"broken\.py"),
            ("config.json", ValueError, r"config\.json"),
        ],
    )
    def test_errors_name_the_file(self, configs, name, error, message):
        with pytest.raises(error, match=message):
            LazyConfig.load(str(configs / name))

    def test_ordinary_imports_are_untouched(self, configs):
        ordinary = builtins.__import__
        LazyConfig.load(str(configs / "leaf.py"))
        assert builtins.__import__ is ordinary

    @pytest.mark.skipif(
        not detectron2.__version__.endswith("sam_d2"), reason="Detectron2 leaves its import function behind"
    )
    def test_imports_are_restored_after_a_broken_config(self, configs, monkeypatch):
        ordinary = builtins.__import__
        monkeypatch.setattr(builtins, "__import__", ordinary)  # restored even where this test fails
        with pytest.raises(ImportError):
            LazyConfig.load(str(configs / "missing_import.py"))
        assert builtins.__import__ is ordinary


class TestSave:
    def test_yaml_loads_again(self, configs, tmp_path):
        cfg = LazyConfig.load(str(configs / "leaf.py"))
        file = str(tmp_path / "config.yaml")
        LazyConfig.save(cfg, file)
        again = LazyConfig.load(file)
        assert again.model._target_ == "types.SimpleNamespace"
        assert again.model.inner._target_ == "itertools.count"
        assert cfg.model._target_ is SimpleNamespace  # saving changed nothing
        again.model.x = "new"
        assert again.model.y == "new"  # the interpolation was kept
        assert next(instantiate(again.model).inner) == 3
        assert again.train == cfg.train
        assert LazyConfig.load(file, "train") == cfg.train
        LazyConfig.save(again, str(tmp_path / "again.yaml"))
        expected = yaml.safe_load((tmp_path / "config.yaml").read_text())
        expected["model"]["x"] = "new"
        assert yaml.safe_load((tmp_path / "again.yaml").read_text()) == expected

    def test_what_yaml_cannot_hold_is_pickled(self, tmp_path):
        file = tmp_path / "config.yaml"
        LazyConfig.save(DictConfig({"x": lambda: 3}, flags={"allow_objects": True}), str(file))
        assert file.exists() and (tmp_path / "config.yaml.pkl").exists()

    def test_short_names_of_targets(self, tmp_path):
        from detectron2.solver import WarmupParamScheduler

        file = tmp_path / "config.yaml"
        LazyConfig.save(DictConfig({"s": L(WarmupParamScheduler)(warmup_length=0.1)}), str(file))
        assert yaml.safe_load(file.read_text())["s"]["_target_"] == "detectron2.solver.WarmupParamScheduler"


class TestOverrides:
    def test_values_follow_hydras_grammar(self):
        cfg = DictConfig({"a": {"b": 1, "c": {"d": 2}}, "l": [1, 2]})
        overrides = ["a.b=3.5", "a.c={e: 5}", 'a.s="7"', "a.n=null", "l=[4]", "+new.deep=true", "a.t=x y"]
        assert LazyConfig.apply_overrides(cfg, overrides) is cfg
        assert cfg == {
            "a": {"b": 3.5, "c": {"d": 2, "e": 5}, "s": "7", "n": None, "t": "x y"},  # a dict is merged
            "l": [4],
            "new": {"deep": True},
        }

    def test_elements_of_lists(self):
        cfg = DictConfig({"l": [{"a": 1}, {"a": 2}]})
        LazyConfig.apply_overrides(cfg, ["l.1.a=5"])
        assert cfg.l == [{"a": 1}, {"a": 5}]

    def test_errors(self):
        with pytest.raises(KeyError, match=r"a\.b"):
            LazyConfig.apply_overrides(DictConfig({"a": {"b": 1}}), ["a.b.c=1"])
        with pytest.raises(NotImplementedError):
            LazyConfig.apply_overrides(DictConfig({"a": 1}), ["~a"])
        with pytest.raises(Exception, match="a"):
            LazyConfig.apply_overrides(DictConfig({"a": 1}), ["a"])


class Box:
    def __init__(self, content=None, **others):
        self.content = content
        self.others = others

    def __call__(self, added):
        return self.content + added


class TestInstantiate:
    def test_inner_calls_come_first_and_interpolations_are_resolved(self):
        cfg = L(Box)(content=[L(Box)(content=1), 2], other=L(Box)(content="${..size}"), size=4)
        cfg.size = 5
        box = instantiate(cfg)
        assert isinstance(box, Box) and isinstance(box.content[0], Box) and box.content[1] == 2
        assert box.others["other"].content == 5 and box.others["size"] == 5

    def test_what_is_no_call_is_returned(self):
        plain = DictConfig({"a": 1})
        for value in (5, "text", None, plain, {"a": 1}):
            assert instantiate(value) is value
        box, two = instantiate([L(Box)(content=1), 2])
        assert isinstance(box, Box) and box.content == 1 and two == 2
        listed = instantiate(ListConfig([1, {"_target_": "builtins.dict", "a": 1}]))
        assert isinstance(listed, ListConfig) and listed[1] == {"a": 1}

    def test_targets_by_name_and_by_a_call(self):
        assert instantiate({"_target_": "builtins.dict", "a": 1}) == {"a": 1}
        assert instantiate(L(L(Box)(content=3))(added=4)) == 7

    def test_dataclasses_as_target_and_as_argument(self, tmp_path, monkeypatch):
        (tmp_path / "shapes_of_a_test.py").write_text(
            "import dataclasses\n@dataclasses.dataclass\nclass Shape:\n    height: int = 1\n    width: int = 0\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        shape = importlib.import_module("shapes_of_a_test").Shape
        cfg = L(SimpleNamespace)(target=L(shape)(height=2), argument=shape(width=3))
        assert cfg.target._target_ == "shapes_of_a_test.Shape"
        LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
        for one in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
            built = instantiate(one)
            assert built.target == shape(2, 0) and built.argument == shape(1, 3)
        assert instantiate(dump_dataclass(shape(4, 5))) == shape(4, 5)

    def test_wrong_calls(self):
        with pytest.raises(TypeError):
            instantiate(L(len)(depth=1))
        with pytest.raises(TypeError):
            L(3)
        with pytest.raises(TypeError):
            L(Box)(1)
        with pytest.raises(AssertionError):
            instantiate({"_target_": 3})
        with pytest.raises(Exception, match="nowhere"):
            instantiate({"_target_": "nowhere.to_be_found"})
