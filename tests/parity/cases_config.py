"""Cases of detectron2.config: files with relative imports, overrides, YAML, and what configs are built to."""

import builtins
import collections
import contextlib
import dataclasses
import fractions
import functools
import importlib
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

import torch
import yaml
from answers import Live
from inputs import logged, raised
from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.config.instantiate import dump_dataclass
from detectron2.utils.registry import _convert_target_to_string, locate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = {
    "leaf.py": """
        from .common.train import train, plain
        from .common.models.tiny import model, WIDTH
        from .neighbour import model as other
        from .common.nested.optim import optimizer
        import os.path
        train.steps = 7
        train.update(more=dict(deep=[1, dict(a=2)]))
        _hidden = dict(a=1)
        number = 3
        listed = [1, 2]
        nodes = optimizer.nodes
        made = {name: dict(order=i) for i, name in enumerate("ab")}
    """,
    "neighbour.py": """
        from .common.models.tiny import model
        model.x = "changed"
    """,
    "common/train.py": """
        train = dict(steps=5, folder="out", rate=1e-4, on=True, nothing=None)
        plain = dict(a=dict(b=1), c=[1, (2, 3)])
    """,
    "common/models/tiny.py": """
        import collections
        from types import SimpleNamespace
        from detectron2.config import LazyCall as L
        from ..train import train
        WIDTH = 4
        model = L(SimpleNamespace)(x=train.folder, y="${.x}", inner=L(collections.Counter)(a=WIDTH), w="${train.rate}")
    """,
    "common/nested/optim.py": """
        import torch
        from omegaconf import OmegaConf
        from detectron2.config import LazyCall as L
        from ...neighbour import model
        optimizer = L(torch.optim.SGD)(params=None, lr="${..train.rate}", momentum=0.9)
        optimizer.nodes = OmegaConf.create([dict(a=1), 2])
        optimizer.of = model.x
    """,
    "rel.py": """
        from detectron2.config import LazyConfig
        train = LazyConfig.load_rel("./common/train.py", "train")
        both = LazyConfig.load_rel("leaf.py", ("plain", "number"))[0]
    """,
    "plain.yaml": """
        model: {_target_: types.SimpleNamespace, x: 1, y: "${.x}"}
        listed: [1, {a: null}]
        pair: !!python/tuple [1, 2]
    """,
    "plain.yml": "a: 1",
    "folder.py": "from . import common",
    "folder_of_files.py": "from .common.models import tiny",
    "missing_file.py": "from .common.nothing import x",
    "missing_name.py": "from .common.train import nothing",
    "star.py": "from .common.train import *",
    "module.py": "import common.train",
    "above.py": "from ...nowhere.at_all import x",
    "broken.py": "x = (",
    "broken_import.py": "from .broken import x",
    "fails.py": "x = 1 / 0",
    "fails_import.py": "from .fails import x",
    "circle.py": "from .circle_back import x",
    "circle_back.py": "from .circle import x",
    "itself.py": "x = 1\nfrom .itself import x as y",
    "common/sibling.py": """
        from . models.tiny import model
        from .nested.up.two import shared
        shared.own = True
    """,
    "common/nested/up/two.py": """
        from ....neighbour import model as far
        from ...train import train as shared, plain
        from ..optim import optimizer as near
        shared.found = [far.x, near.of, plain["a"]]
    """,
    "other.json": "{}",
}


@contextlib.contextmanager
def files():
    """A tree of config files, and the import function as it was: Detectron2 leaves its own after an error."""
    ordinary = builtins.__import__
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(content).strip() + "\n")
        try:
            yield Path(folder)
        finally:
            builtins.__import__ = ordinary


def described(value):
    """Types and values of a config, without resolving it."""
    if isinstance(value, DictConfig):
        items = {str(key): described(item) for key, item in value.items_ex(resolve=False)}
        return {"type": "DictConfig", "objects": bool(value._get_flag("allow_objects")), "items": items}
    if isinstance(value, ListConfig):
        return {"type": "ListConfig", "items": [described(node) for node in value._iter_ex(resolve=False)]}
    if isinstance(value, (dict, list, tuple)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {"type": type(value).__name__, "items": {str(key): described(item) for key, item in inner}}
    if isinstance(value, functools.partial):
        return ["partial", described(value.func), described(value.args), described(value.keywords)]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def saved(cfg):
    """The file's text, or the files and the levels of what is logged where YAML does not suffice."""
    with tempfile.TemporaryDirectory() as folder, logged() as lines:
        file = Path(folder) / "config.yaml"
        try:
            LazyConfig.save(cfg, str(file))
        except Exception as error:
            return {"error": type(error).__name__}
        return {
            "text": file.read_text() if file.exists() else None,
            "files": sorted(path.name for path in Path(folder).iterdir()),
            "log": [level for level, _ in lines],
        }


def case_load():
    with files() as folder:
        leaf = LazyConfig.load(str(folder / "leaf.py"))
        leaf.train.steps = 100
        again = LazyConfig.load(str(folder / "leaf.py"))
        keys = LazyConfig.load(str(folder / "leaf.py"), ("train", "listed", "_hidden", "number", "WIDTH"))
        before = Path.cwd()
        os.chdir(folder)
        try:
            here = [LazyConfig.load(name) for name in ("leaf.py", "./leaf.py", "common/../leaf.py", "././leaf.py")]
        finally:
            os.chdir(before)
        return {
            "leaf": described(again),
            "text": saved(again),
            "keys": described(keys),
            "one_key": described(LazyConfig.load(str(folder / "leaf.py"), "_hidden")),
            "here": [cfg == again for cfg in here],
            "rel": described(LazyConfig.load(str(folder / "rel.py"))),
            "up_and_down": described(LazyConfig.load(str(folder / "common" / "sibling.py"))),
            "yaml": described(LazyConfig.load(str(folder / "plain.yaml"))),
            "yaml_key": described(LazyConfig.load(str(folder / "plain.yaml"), "model")),
            "yaml_keys": described(LazyConfig.load(str(folder / "plain.yaml"), ("listed", "pair"))),
            "yml": described(LazyConfig.load(str(folder / "plain.yml"))),
            "import_after": raised(lambda: importlib.import_module("json.tool")),
        }


def case_load_errors():
    names = ("folder", "folder_of_files", "missing_file", "missing_name", "star", "module", "above")
    names += ("broken", "broken_import", "fails", "fails_import", "not_there", "circle", "itself")
    with files() as folder:
        found = {name: raised(lambda name=name: LazyConfig.load(str(folder / f"{name}.py"))) for name in names}
        found["json"] = raised(lambda: LazyConfig.load(str(folder / "other.json")))
        found["key"] = raised(lambda: LazyConfig.load(str(folder / "leaf.py"), "nothing"))
        found["yaml_key"] = raised(lambda: LazyConfig.load(str(folder / "plain.yml"), "b"))
    return found


def project_configs():
    return sorted(CONFIGS.glob("*.py"))


def case_project_configs():
    """Every config of this project: its YAML, and the same when that is loaded and saved again."""
    texts, same = {}, {}
    for path in project_configs():
        cfg = LazyConfig.load(str(path))
        texts[path.name] = {"config": saved(cfg), "parts": {name: saved(cfg[name]) for name in cfg}}
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "config.yaml")
            LazyConfig.save(cfg, file)
            again = LazyConfig.load(file)
            same[path.name] = saved(again)["text"] == texts[path.name]["config"]["text"]
    return {"texts": Live(texts), "kept_by_yaml": all(same.values()), "names": Live(same)}


def case_project_overrides():
    """Overrides as users of this project write them, on every config."""
    lines = ["train.max_iter=7", "optimizer.lr=3e-5", "+train.note={a: [1, b]}", "model.freeze=[image_encoder]"]
    lines += ["train.output_dir=some/folder with space", "lr_multiplier.scheduler.end_value=0", "train.seed=null"]
    texts = {p.name: saved(LazyConfig.apply_overrides(LazyConfig.load(str(p)), lines)) for p in project_configs()}
    return {"texts": Live(texts), "count": Live(len(texts))}


@dataclasses.dataclass
class Shape:
    height: int = 1
    name: str = "square"
    sides: list = dataclasses.field(default_factory=list)


def module_function(x, y=2):
    return [x, y]


@contextlib.contextmanager
def importable():
    """The names of this file under a module name that ``locate`` finds."""
    sys.modules["parity_config_names"] = module = ModuleType("parity_config_names")
    module.Shape, module.module_function = Shape, module_function
    before = Shape.__module__, module_function.__module__
    Shape.__module__ = module_function.__module__ = "parity_config_names"
    try:
        yield
    finally:
        Shape.__module__, module_function.__module__ = before
        del sys.modules["parity_config_names"]


def made_configs():
    objects = {"allow_objects": True}
    nested = L(L(functools.partial)(func=module_function))(x=L(fractions.Fraction)(numerator=1, denominator=3))
    return {
        "calls": OmegaConf.create(
            {
                "sgd": L(torch.optim.SGD)(params=None, lr=0.1),
                "linear": L(torch.nn.Linear)(in_features=4, out_features=2, bias=False),
                "function": L(module_function)(x=[1, {"a": None}]),
                "builtin": L(sorted)(iterable=[2, 1]),
                "by_name": L("torch.nn.ReLU")(),
                "method": L(collections.OrderedDict.fromkeys)(iterable=[1]),
                "activation": L(torch.nn.functional.relu)(input=1.5),
            },
            flags=objects,
        ),
        "nested": nested,
        "values": OmegaConf.create(
            {
                "floats": [1e-4, 1.0, 123456789.125, float("inf"), 1e300],
                "texts": ["", "yes", "1", "null", "a: b", "ü 雪", "two\nlines", " space "],
                "others": [None, True, -3, [], {}],
                "deep": {"a": {"b": {"c": [[1, [2, {"d": 3}]]]}}},
                3: "whole key",
                "z": 1,
                "a": 2,
                "long": "word " * 300,
            }
        ),
        "interpolations": OmegaConf.create(
            {
                "size": 4,
                "model": {"width": "${size}", "depth": "${.width}", "name": "w${..size}"},
                "env": "${oc.env:HOME}",
            }
        ),
        "missing": OmegaConf.create({"a": "???", "model": {"b": "???"}}),
        "dangling": OmegaConf.create({"a": "${nowhere.to.be.found}", "listed": ["${b}"]}),
        "dataclass": OmegaConf.create({"shape": Shape(height=3, sides=[1, 2])}),
        "dataclass_target": L(Shape)(height=2),
        "dataclass_argument": L(module_function)(x=Shape(name="long"), y=[Shape()]),
        "object": DictConfig({"f": L(module_function)(x=torch.zeros(2)), "t": (1, 2)}, flags=objects),
        "partial": DictConfig({"norm": functools.partial(torch.nn.LayerNorm, eps=1e-6)}, flags=objects),
        "class_as_value": DictConfig({"layer": torch.nn.GELU, "inner": {"f": module_function}}, flags=objects),
        "function_of_a_call": DictConfig({"f": lambda: 3}, flags=objects),
        "target_without_name": DictConfig({"_target_": functools.partial(int, base=2), "x": 1}, flags=objects),
        "list": OmegaConf.create([{"a": 1}, "${0.a}"]),
        "empty": OmegaConf.create({}),
    }


def case_save():
    """The YAML of made configs, or what is done where there is none; the config itself stays as it was."""
    with importable():
        found = {}
        for name, cfg in made_configs().items():
            before = described(cfg)
            found[name] = saved(cfg)
            if name in ("object", "function_of_a_call"):
                found[name]["text"] = None  # bytes of a pickle, with addresses in memory
            found[f"{name} unchanged"] = described(cfg) == before
        found["plain_dict"] = saved({"a": 1, "_target_": "x"})
        found["no_folder"] = raised(lambda: LazyConfig.save(DictConfig({"a": 1}), "/nowhere/at/all/config.yaml"))
    return found


def case_save_and_load():
    """Values after a round trip through the file, by type."""
    with importable(), tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "config.yaml")
        found = {}
        for name in ("calls", "nested", "values", "interpolations", "dataclass", "dataclass_target", "list", "empty"):
            LazyConfig.save(made_configs()[name], file)
            try:
                found[name] = described(LazyConfig.load(file))
            except yaml.YAMLError as error:
                found[name] = type(error).__name__
        return found


def case_overrides():
    lines = [
        "a.b=3", "a.b=3.50", "a.b=1e-4", "a.b=-inf", "a.b=true", "a.b=null", "a.b=text", "a.b=two words", "a.b='1'",
        'a.b="a=b"', "a.b=", "a.b=[1,2.5,x]", "a.b=[]", "a.b={c: 1}", "a.c={e: 5}", "a.c={d: 9}", "a.c=3", "l=[4]",
        "l.1.a=5", "l.0=7", "+n=1", "+n.m.k=[{a: b}]", "++a.b=4", "a.new=5", "n.m=1", "a.b=${l}", "a.b=${a.c.d}",
        "a.b=/some/path.pth", "a.b=s3://bucket/x?y=1", "a.b=2026-11-20", "a.b=0x10", "a.b=1_000", "a.b=yes",
        "a.b=int(3.7)", "a.b=a,b", "a.b=range(1,4)", "a.b=choice(a,b)", "a.b.c=1", "a.s.x=1", "l.7=1", "~a", "~a.b=1",
        "a", "=3", "a.b=[1", "a.b={c:", "a b=1", "a@x=1", "a/b=1", "l.x=1", "", "a.c.d=[1, [2]]", "m.x=4", "i=5",
        "u.v=1",
    ]  # fmt: skip
    found = {}
    for line in lines:
        cfg = DictConfig({"a": {"b": 1, "c": {"d": 2}, "s": "text"}, "l": [1, {"a": 2}], "m": "???", "i": "${a.b}"})
        cfg.u = "${a}"
        try:
            assert LazyConfig.apply_overrides(cfg, [line]) is cfg
            found[line] = described(cfg)
        except Exception as error:
            found[line] = type(error).__name__
    several = DictConfig({"a": {"b": 1}})
    LazyConfig.apply_overrides(several, ["a.b=2", "a.b=3", "a.c=${.b}", "x.y.z=1", "x.y.w=${a.c}"])
    found["several"] = described(several)
    stopped = DictConfig({"a": 1})
    found["stopped"] = [raised(lambda: LazyConfig.apply_overrides(stopped, ["a=2", "~a"])), described(stopped)]
    strict = OmegaConf.create({"a": 1})
    OmegaConf.set_struct(strict, True)
    found["strict"] = [raised(lambda: LazyConfig.apply_overrides(strict, ["b=2"])), described(strict)]
    call = L(module_function)(x=1, y=L(fractions.Fraction)(numerator=1))
    found["call"] = LazyConfig.apply_overrides(call, ["y.numerator=3", "y.denominator=4", "x=[1]"]).y
    found["call"] = [str(instantiate(found["call"])), described(instantiate(call.x))]
    return found


class Box:
    def __init__(self, content=None, **others):
        self.content, self.others = content, others

    def __call__(self, added):
        return self.content + added

    @classmethod
    def made(cls, content):
        return cls([content])


def case_instantiate():
    inner = L(Box)(content=[L(Box)(content=1), 2, "${size}"], other=L(Box)(content="${..size}"), size=4)
    inner.content[2] = "${size}"
    box = instantiate(inner)
    linear = instantiate(L(torch.nn.Linear)(in_features=3, out_features=2, bias=False))
    listed = instantiate(ListConfig([1, {"_target_": "builtins.dict", "a": 1}, [L(Box)(content=3)]]))
    shape = DictConfig({"shape": Shape(height=4)})
    plain = DictConfig({"inner": {"_target_": "builtins.dict"}})
    with logged() as lines:
        errors = [
            raised(lambda: instantiate(L(len)(depth=1))),
            raised(lambda: instantiate(L(Box)(content=L(Shape)(wrong=1)))),
            raised(lambda: instantiate({"_target_": 3})),
            raised(lambda: instantiate({"_target_": "nowhere.to_be_found"})),
            raised(lambda: instantiate({"_target_": "torch.nothing_of_this_name"})),
            raised(lambda: instantiate(L(Box)(content="${nowhere}"))),
            raised(lambda: instantiate(L(Box)(content="???"))),
            raised(lambda: instantiate(L(int)(x="x"))),
            raised(lambda: instantiate(L(fractions.Fraction)(numerator=1, denominator=0))),
            raised(lambda: L(3)),
            raised(lambda: L(Box)(1)),
        ]
    return {
        "content": [type(box.content).__name__, type(box.content[0]).__name__, list(box.content)[1:]],
        "others": [sorted(box.others), type(box.others["other"]).__name__, box.others["other"].content],
        "linear": [type(linear).__name__, list(linear.weight.shape), linear.bias is None],
        "listed": [type(listed).__name__, described(listed[1]), type(listed[2]).__name__, type(listed[2][0]).__name__],
        "list": described(instantiate([{"_target_": "builtins.dict", "a": 1}, {"a": 2}])),
        "of_a_call": instantiate(L(L(Box)(content=3))(added=4)),
        "by_name": [
            str(instantiate({"_target_": "fractions.Fraction", "numerator": 3})),
            instantiate({"_target_": "int"}),
        ],
        "class_method": instantiate(L(Box.made)(content=3)).content,
        "dict_argument": type(instantiate(L(Box)(content={"a": 1})).content).__name__,
        "list_argument": type(instantiate(L(Box)(content=[1])).content).__name__,
        "shape": described(dataclasses.asdict(instantiate(shape.shape))),
        "shape_inside": type(instantiate(shape)).__name__,
        "as_they_are": [instantiate(value) is value for value in (5, "x", None, plain, {"a": 1})],
        "errors": errors,
        "log": [[level, re.sub(r"\S*cases_config", "cases_config", message)] for level, message in lines],
    }


def case_names_of_targets():
    with importable():
        targets = [torch.optim.SGD, torch.nn.Linear, module_function, Shape, collections.OrderedDict, Box.made]
        names = [_convert_target_to_string(target) for target in targets]
        shape = Shape(2, "x", [Shape(3), (1, 2)])
        return {
            "names": names,
            "found": [locate(name) is target for name, target in zip(names[:5], targets[:5], strict=True)],
            "located": [locate(name).__name__ for name in ("torch.optim.sgd.SGD", "os.path.join", "int", "json.tool")],
            "errors": [raised(lambda: locate("no_such.module")), raised(lambda: locate("json.no_such"))],
            "dataclass": described(dump_dataclass(shape)),
            "dataclass_errors": [raised(lambda: dump_dataclass(Shape)), raised(lambda: dump_dataclass(3))],
            "yaml": yaml.safe_dump(dump_dataclass(Shape(2))),
        }
