"""Every config: short, pure data, the same again after YAML, and a model that can be built and trained."""

import ast
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from segment_anything import sam_model_registry

import detectron2
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from sam_d2.cli import parse_args
from sam_d2.config import CONFIG_NAMES, apply_overrides, load_config, save_config
from sam_d2.config_dataset import class_keys
from sam_d2.modeling.sam import PromptableSAM

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
COMMON = sorted((CONFIGS / "common").rglob("*.py"))
LEAVES = sorted(path for path in CONFIGS.rglob("*.py") if path not in COMMON)
# segment_anything's name of the sizes of each config that its weights must fit
SAM_SIZES = {"sam.py": "vit_b", "sam_vit_l.py": "vit_l", "sam_vit_h.py": "vit_h"}
MAX_REAL_PARAMETERS = 5_000_000


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(params=LEAVES, ids=name_of)
def leaf(request):
    return request.param


@pytest.fixture
def cfg(leaf):
    if "mvit" in leaf.name and "sam_d2" not in detectron2.__version__:
        pytest.importorskip("timm", reason="the installed Detectron2 takes MViT's layers from timm")
    return complete(load_config(leaf))


def complete(cfg):
    """The config with what train_net.py takes from the dataset: 3 classes."""
    for key in class_keys(cfg):
        OmegaConf.update(cfg, key, 3)
    return cfg


def build_on_meta(cfg):
    """Build a model without memory; Detectron2's own MViT reads the values of a tensor, of which meta has none."""
    reads_values = "sam_d2" not in detectron2.__version__ and "MViT" in str(OmegaConf.to_container(cfg.model))
    with torch.device("cpu" if reads_values else "meta"):
        return instantiate(cfg.model)


def code_lines(path: Path) -> int:
    """Lines that hold code or its comments, without the docstring and blank lines."""
    source = path.read_text(encoding="utf-8")
    first = ast.parse(source).body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    lines = source.splitlines()[first.end_lineno if is_docstring else 0 :]
    return sum(1 for line in lines if line.strip())


def test_the_known_configs_are_found():
    assert {"sam.py", "sam_vit_l.py", "sam_vit_h.py", "sam_tiny.py"} <= set(map(name_of, LEAVES))
    assert {"train.py", "optim.py", "schedule.py"} <= {path.name for path in COMMON}


@pytest.mark.parametrize("path", [*LEAVES, *COMMON], ids=name_of)
def test_is_data_not_program(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "says what it is for"
    program = (ast.Lambda, ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, program)]
    assert not found, f"{path}: lambdas cannot be saved, and logic belongs in a named function of sam_d2"
    assert "/path/to" not in path.read_text(encoding="utf-8")
    assert code_lines(path) <= (60 if path in COMMON else 25)


def test_has_the_five_names_and_resolves(cfg):
    assert set(CONFIG_NAMES) <= set(cfg)
    OmegaConf.to_container(cfg, resolve=True)  # an interpolation that points nowhere raises


def test_round_trip_through_yaml(cfg, tmp_path):
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert OmegaConf.to_container(again, resolve=False) == OmegaConf.to_container(cfg, resolve=False)
    built, rebuilt = build_on_meta(cfg), build_on_meta(again)
    assert repr(rebuilt) == repr(built)
    assert shapes(rebuilt) == shapes(built)


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_part_builds(cfg):
    model = build_on_meta(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == trained
    schedule = instantiate(cfg.lr_multiplier)
    shares = [schedule(where) for where in np.linspace(0, 0.999, 50)]
    assert min(shares) > 0 and max(shares) <= 1 and shares[-1] < 0.1, "warm, and nearly zero at the end"


def test_mappers_follow_the_model(cfg):
    model = build_on_meta(cfg)
    for split, is_train in (("train", True), ("test", False)):
        mapper = instantiate(cfg.dataloader[split].mapper)
        assert mapper.is_train is is_train
        if isinstance(model, PromptableSAM):
            assert mapper.resize.max_size == mapper.image_size == model.canvas
        if "input_format" in cfg.model:
            assert mapper.image_format == model.input_format


@pytest.mark.parametrize(("name", "size"), SAM_SIZES.items())
def test_official_weights_fit_without_a_mapping(name, size):
    with torch.device("meta"):
        official = sam_model_registry[size]()
    model = build_on_meta(load_config(CONFIGS / name))
    assert shapes(model) == shapes(official)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in official.parameters())
    assert model.pixel_mean.shape == official.pixel_mean.shape
    assert not any(parameter.requires_grad for parameter in model.image_encoder.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # the mask decoder's 4,058,340 less three hypernetworks of 256 -> 256 -> 256 -> 32 with biases
    assert trained == 4_058_340 - 3 * (2 * (256 * 256 + 256) + 256 * 32 + 32)


def made_sample(side: int) -> dict:
    """A landscape image that fills the canvas, with two instances, in the form that a training mapper gives."""
    height, width = side * 3 // 4, side
    corners = np.array([[0.1, 0.1, 0.4, 0.1, 0.4, 0.5], [0.5, 0.3, 0.9, 0.3, 0.9, 0.7, 0.5, 0.7]], dtype=object)
    instances = Instances((height, width))
    instances.gt_masks = PolygonMasks([[np.array(polygon, dtype=float) * height] for polygon in corners])
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    assert isinstance(instances.gt_boxes, Boxes)
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width, "seed": 0}


def test_small_ones_take_a_step(cfg):
    if sum(parameter.numel() for parameter in build_on_meta(cfg).parameters()) > MAX_REAL_PARAMETERS:
        pytest.skip("too large for a test; it is built on the meta device")
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    sample = made_sample(cfg.model.image_encoder.img_size)
    before = sum(model([sample]).values())
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = sum(model([sample]).values())
    assert after < before
    model.eval()
    result = model([sample])[0]["instances"]
    assert len(result) == 2 and result.pred_masks.shape[1:] == sample["image"].shape[1:]


def test_the_sweep_runs_train_net_with_keys_of_the_config(tmp_path):
    sweep = yaml.safe_load((CONFIGS / "sweeps" / "cartons.yaml").read_text())
    drawn = [f"{key}={choice.get('values', [choice.get('min')])[0]}" for key, choice in sweep["parameters"].items()]
    # As the agent does: ${env} is /usr/bin/env, and ${args_no_hyphens} stands for one key=value per parameter.
    macros = {"${env}": ["/usr/bin/env"], "${program}": [sweep["program"]], "${args_no_hyphens}": drawn}
    command = [word for part in sweep["command"] for word in macros.get(part, [part])]
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "abc1"}
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[0] == "experiments/train_net.py" and (CONFIGS.parent / words[0]).is_file()
    args = parse_args(words[1:])
    assert args.config_file == "configs/cartons.py" and args.output_dir.endswith("sweep_cartons_abc1")
    assert "train.wandb.enabled=True" in args.opts
    apply_overrides(load_config(CONFIGS.parent / args.config_file), drawn)  # refuses a key that the config lacks
    assert set(drawn) <= set(args.opts)
