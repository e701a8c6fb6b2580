"""What a YAML file or an override may call: nothing that runs, reads or writes anything."""

import ast
import importlib
import inspect
import os
import pkgutil
import sys
import textwrap

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import instantiate
from sam_d2 import config_targets
from sam_d2.config import load_config
from sam_d2.config_overrides import apply_overrides
from sam_d2.errors import UserError

GROUPS = "model: {}\ndataloader: {}\noptimizer: {}\nlr_multiplier: {}\n"
GADGETS = [
    "os.system",
    "subprocess.Popen",
    "builtins.exec",
    "builtins.__import__",
    "importlib.import_module",
    "pickle.loads",
    "numpy.load",
    "numpy.fromfile",
    "yaml.unsafe_load",
    "functools.partial",
    "operator.methodcaller",
    "runpy.run_path",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.jit.load",
    "torch.compile",
    "torch.utils.cpp_extension.load",
    "torch._dynamo.optimize",
    "torch.package.PackageImporter",
    "torch.nn.modules.sys.exit",
    "torch.ops.load_library",
    "torch.serialization.load",
    "torch.export.load",
    "torch.distributed.launch.main",
    "torch.nn.Module.apply",
    "torch.nn.Module.load_state_dict",
    "torch.nn.Module.compile",
    "torch.nn.Module.get_submodule",
    "torch.nn.Module.register_forward_hook",
    "torch.nn.cpp.ModuleWrapper",
    "torch.optim.Optimizer.load_state_dict",
    "torchvision.models.WeightsEnum",
    "torchvision.models.WeightsEnum.get_state_dict",
    "torchvision.models.ResNet50_Weights.get_state_dict",
    "torchvision.models.feature_extraction.create_feature_extractor",
    "torchvision.models.resnet.load_state_dict_from_url",
    "torchvision.datasets.folder.default_loader",
    "detectron2.data.datasets.convert_to_coco_json",
    "detectron2.data.datasets.register_coco_instances",
    "detectron2.checkpoint.DetectionCheckpointer",
    "detectron2.engine.launch",
    "detectron2.config.instantiate",
    "fvcore.common.file_io.PathManager.open",
    "fvcore.common.checkpoint.Checkpointer",
    "sam_d2.engine.download.download",
    "sam_d2.engine.launch.launch_main",
    "sam_d2.engine.checkpoint.Checkpointer",
    "sam_d2.engine.checkpoint_file.save_checkpoint_file",
    "sam_d2.evaluation.results.write_atomically",
    "sam_d2.evaluation.results.write_report",
    "sam_d2.evaluation.gallery.write_gallery",
    "sam_d2.data.read_manifest",
    "sam_d2.data.manifest.add_to_manifest",
    "sam_d2.data.scenes.write_scenes",
    "sam_d2.config.load_config",
    "sam_d2.modeling.embedding_store.EmbeddingStore",
    "sam_d2.modeling.embedding_cache.EmbeddingCache",
    "sam_d2.config_targets.locate",
    "sam_d2.config_targets.bind.__globals__",
    "sam_d2.predictor.Predictor",
]


@pytest.mark.parametrize("target", GADGETS)
def test_gadgets_are_refused_in_yaml_and_as_override(target, tmp_path):
    file = tmp_path / "run.yaml"
    for node in (f"{{_target_: {target}}}", f"{{_target_: sam_d2.config_targets.bind, _partial_: {target}}}"):
        file.write_text(f"{GROUPS}train: {{hook: {node}}}\n")
        with pytest.raises(UserError, match=r"run\.yaml: train\.hook\._(target|partial)_ calls"):
            load_config(file)
    file.write_text(f"{GROUPS}train: {{hook: {{_target_: torch.nn.ReLU}}}}\n")
    for override in (f"train.hook._target_={target}", f"+train.x={{_target_:{target}}}"):
        with pytest.raises(UserError, match="override"):
            apply_overrides(load_config(file), [override])


def test_weights_of_another_address_were_a_way_in(tmp_path, canary):
    """torchvision's own method reads a pickle from where its object says, whatever that object is."""

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    torch.save(Hostile(), tmp_path / "evil.pth")
    weights = (
        f"{{_target_: torchvision.models.Weights, url: 'file://{tmp_path}/evil.pth', transforms: null, meta: {{}}}}"
    )
    method = "torchvision.models.WeightsEnum.get_state_dict"
    file = tmp_path / "run.yaml"
    file.write_text(f"{GROUPS}train: {{a: {{_target_: {method}, self: {weights}, model_dir: '{tmp_path}'}}}}\n")
    with pytest.raises(UserError, match="get_state_dict"):
        instantiate(load_config(file).train.a)


@pytest.mark.parametrize("place", ["beside", "configs/evil"])
def test_a_detector_that_is_a_program_is_not_taken_from_yaml(place, tmp_path, monkeypatch):
    program = tmp_path / f"{place}.py"
    program.parent.mkdir(exist_ok=True)
    program.touch()
    monkeypatch.chdir(tmp_path)
    for name in (program, f"{place}.py", f"./{place}.py/."):
        file = tmp_path / "run.yaml"
        file.write_text(
            f"{GROUPS}train: {{}}\n".replace("dataloader: {}", f"dataloader: {{detector: {{config: {name}}}}}")
        )
        with pytest.raises(UserError, match=r"run\.yaml: dataloader\.detector\.config=.* is a program"):
            load_config(file)


def test_a_config_of_the_checkout_may_be_the_detector(tmp_path):
    file = tmp_path / "run.yaml"
    detector = "dataloader: {detector: {config: configs/mask_rcnn_R_18_FPN.py}}"
    file.write_text(f"{GROUPS}train: {{}}\n".replace("dataloader: {}", detector))
    assert load_config(file).dataloader.detector.config == "configs/mask_rcnn_R_18_FPN.py"


def reachable():
    """All that the lists let through, by its path."""
    modules = set()

    def walk(name):
        try:
            module = importlib.import_module(name)
        except Exception:
            return  # needs what is not installed; nor can a config name it then
        modules.add(name)
        for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if not inner.name.startswith("_"):
                walk(f"{name}.{inner.name}")

    for package in config_targets._PACKAGES:
        walk(package)
    found = {}
    for name in sorted(modules):
        for attribute, value in list(vars(sys.modules[name]).items()):
            if not attribute.startswith("_") and callable(value) and config_targets._is_listed(f"{name}.{attribute}"):
                found.setdefault(id(value), (f"{name}.{attribute}", value))
    return dict(found.values())


# By the last part of the name that is called.
ACTS = {
    "open",
    "exec",
    "eval",
    "compile",
    "system",
    "popen",
    "Popen",
    "run",
    "check_call",
    "check_output",
    "load",
    "loads",
    "unlink",
    "rmtree",
    "rename",
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "urlopen",
    "urlretrieve",
    "load_state_dict_from_url",
    "__import__",
    "savez",
    "save",
    "dump",
    "spawn",
    "read_bytes",
    "download_url_to_file",
}
HARMLESS = {
    "detectron2.evaluation.COCOPanopticEvaluator": "makes the folder for its own results",
    "detectron2.evaluation.PascalVOCDetectionEvaluator": "reads the dataset's own lists",
    "torchvision.ops.roi_align.lazy_compile": "torch.compile of its argument, which comes from here too",
}


def calls(value):
    """Names that a function, or the making of an object, calls directly."""
    bodies = (
        [value]
        if inspect.isfunction(value)
        else [vars(value).get(name) for name in ("__init__", "__new__", "__post_init__")]
    )
    for body in bodies:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(body)))
        except (TypeError, OSError, SyntaxError):
            continue  # none of its own, or made by a decorator
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                # `model.eval()` is a method without arguments, `self.x.load` of an optimizer's state likewise
                if name != "eval" or node.args:
                    yield name


def test_nothing_that_may_be_called_acts_by_itself():
    """The source of each listed class and function, as installed here; new ones of a new torch are looked at too."""
    found = reachable()
    assert len(found) > 500 and {"detectron2.modeling.FPN", "torch.optim.AdamW"} <= found.keys()
    acting = {path: sorted(acts) for path, value in found.items() if (acts := ACTS & set(calls(value)))}
    assert {path: acts for path, acts in acting.items() if path not in HARMLESS} == {}


@pytest.mark.parametrize("after", [[], ["size=3"], ["text=b"]])
def test_a_number_that_chooses_among_names(after):
    """Numbers name nothing by themselves, and so are not looked at one by one."""
    OmegaConf.register_new_resolver("nth", lambda number: ["torch.nn.ReLU", "os.system"][number], replace=True)
    cfg = OmegaConf.create({"choice": 0, "call": {"_target_": "${nth:${choice}}"}, "size": 1, "text": "a"})
    with pytest.raises(UserError, match=r"call\._target_ calls 'os\.system'"):
        apply_overrides(cfg, ["choice=1", *after])
    OmegaConf.clear_resolver("nth")
