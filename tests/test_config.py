"""Configs: load, strict overrides, pure-data YAML, and what YAML may call."""

import builtins
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, bind, load_config, save_config
from sam_d2.config_targets import check_target, import_path
from sam_d2.errors import UserError

COMMON = """
import torch
from functools import partial
from torch import nn
from detectron2.config import LazyCall as L

model = L(nn.Conv2d)(in_channels=3, out_channels=4, kernel_size=1, bias=True)
dataloader = dict(
    train=dict(mapper=dict(size="${model.in_channels}", half="${.size}", seed="${..seed}"), seed=9),
    test=dict(mapper="${dataloader.train.mapper}", seed=1),
    evaluators=[dict(name="a"), dict(name="b")],
)
optimizer = L(torch.optim.SGD)(params="???", lr=1e-4)
lr_multiplier = dict(norm=partial(nn.LayerNorm, eps=1e-6), act=nn.GELU)
train = dict(max_iter=100, init_checkpoint=None, output_dir="???", betas=(0.9, 0.999))
"""
LEAF = """
from .common import model, dataloader, optimizer, lr_multiplier, train

model.out_channels = 6
"""


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "common.py").write_text(COMMON)
    leaf = tmp_path / "leaf.py"
    leaf.write_text(LEAF)
    return leaf


@pytest.fixture
def cfg(config_file):
    return load_config(config_file)


def _yaml(tmp_path, body):
    """A config with the five groups, whose ``model`` is the given YAML."""
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {body}\ndataloader: {{}}\noptimizer: {{}}\nlr_multiplier: {{}}\ntrain: {{}}\n")
    return file


def test_loads_a_derived_config_as_plain_data(cfg):
    assert cfg.model._target_ == "torch.nn.Conv2d"
    layer = instantiate(cfg.model)
    # 6 output x 3 input channels x 1 x 1 weights, 6 biases
    assert isinstance(layer, torch.nn.Conv2d)
    assert sum(p.numel() for p in layer.parameters()) == 6 * 3 + 6


def test_callables_become_nodes_that_can_be_overridden(cfg):
    apply_overrides(cfg, ["lr_multiplier.norm.eps=1e-3", "lr_multiplier.norm.bias=false"])
    norm = instantiate(cfg.lr_multiplier.norm)(5)
    assert norm.eps == 1e-3 and norm.bias is None
    assert instantiate(cfg.lr_multiplier.act) is torch.nn.GELU


def test_hydras_spelling_of_partial_works_with_detectron2s_instantiate(tmp_path):
    file = _yaml(tmp_path, "{_target_: torch.nn.LayerNorm, _partial_: true, eps: 0.5}")
    with pytest.raises(UserError, match="_partial_"):  # in YAML it would be no import path
        check_target("model._partial_", True, "run.yaml")
    assert instantiate(load_config(file).model)(3).eps == 0.5


def test_round_trip_through_yaml(cfg, tmp_path):
    path = tmp_path / "new" / "config.yaml"
    save_config(cfg, path)
    again = load_config(path)
    assert again == cfg
    assert OmegaConf.to_container(again) == OmegaConf.to_container(cfg)  # interpolations, not their values
    assert "!!" not in path.read_text()
    assert instantiate(again.model).out_channels == 6
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]  # no temporary file is left


def test_saved_interpolations_follow_their_source(cfg, tmp_path):
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    apply_overrides(again, ["model.in_channels=5"])
    assert again.dataloader.train.mapper.size == 5
    assert again.dataloader.test.mapper.half == 5


def test_save_keeps_the_old_file_when_the_config_cannot_be_saved(cfg, tmp_path):
    path = tmp_path / "config.yaml"
    save_config(cfg, path)
    before = path.read_text()
    cfg.train.weight = torch.zeros(1)
    with pytest.raises(UserError, match=r"train\.weight"):
        save_config(cfg, path)
    assert path.read_text() == before
    cfg.train.weight = lambda x: x
    with pytest.raises(UserError, match="lambda"):
        save_config(cfg, path)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=7", "train.max_iter", 7),
        ("train.init_checkpoint=weights/a.pth", "train.init_checkpoint", "weights/a.pth"),
        ("train.output_dir='a folder'", "train.output_dir", "a folder"),
        ("train.betas=[0.8,0.9]", "train.betas", [0.8, 0.9]),
        ("train.betas.1=0.5", "train.betas", [0.9, 0.5]),
        ("dataloader.evaluators.1.name=c", "dataloader.evaluators.1.name", "c"),
        ("train.max_iter=null", "train.max_iter", None),
        ("train.max_iter=${dataloader.train.seed}", "train.max_iter", 9),
        ("train={max_iter:3}", "train.max_iter", 3),
        (
            "optimizer.momentum=0.9",
            "optimizer.momentum",
            0.9,
        ),  # a parameter of SGD
        ("+train.note=x", "train.note", "x"),
        ("+train.deep.note=x", "train.deep.note", "x"),
        ("+train.init_checkpoint.url=x", "train.init_checkpoint.url", "x"),
    ],
)
def test_override_sets_a_value(cfg, override, key, value):
    assert apply_overrides(cfg, [override]) is cfg
    assert OmegaConf.select(cfg, key) == value
    assert cfg.train.betas[0] == (0.8 if "0.8" in override else 0.9)  # neighbours stay


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=7", r"no key 'train\.max_itr'.*'train\.max_iter'.*\+train\.max_itr=7"),
        ("max_iter=7", r"Did you mean 'train\.max_iter'"),
        ("trian.max_iter=7", "Did you mean 'train'"),
        ("optimizer.momentun=1", r"Did you mean 'optimizer\.momentum'"),
        ("model.out_chanels=1", r"Did you mean 'model\.out_channels'"),
        ("train={max_itr: 7}", r"no key 'train\.max_itr'"),
        ("dataloader={train:{sed:1}}", r"no key 'dataloader\.train\.sed'.*dataloader\.train\.seed"),
        ("train.max_iter.deep=1", r"train\.max_iter is 100, not a group"),
        ("dataloader.evaluators.2.name=c", "list of 2 entries"),
        ("train.max_iter", r"has no '='. Did you mean train\.max_iter=100 "),
        ("train.max_iter:7", r"has no '='. Did you mean train\.max_iter=7 "),
        ("max_iter", r"Did you mean train\.max_iter=100 "),
        ("train.max_itr", r"Did you mean train\.max_iter=100 "),
        ("SOLVER.MAX_ITER", r"Did you mean train\.max_iter=100 "),
        ("SOLVER.MAX_ITER=7", r"no key 'SOLVER'\. Did you mean 'train\.max_iter'\?"),
        ("train.betas", r"Did you mean train\.betas=VALUE "),
        ("hello", r"no '=' and is no key of the config\. Write key=value, such as train\.max_iter=200\.$"),
        ("optimizer", r"Did you mean optimizer=VALUE "),
        ("out_channel", "is no key of the config"),
        (__file__, "goes with --config-file"),
        ("train.betas=[1", r"is not key=value .*Examples: train\.max_iter=200"),
        ("train.note=a=b", r"""needs quotes of its own: "train\.note='a=b'"$"""),
        ("train.note=it's", r"is not key=value .*Examples: train\.max_iter=200"),
        ("train.max_iter=1,2", r"train\.max_iter=\[\.\.\.\]"),
        ("~train.max_iter", "cannot be removed"),
        ("train.max_iter=${train.nothing}", "nothing"),
        ("--evalonly", "not an option"),
    ],
)
def test_override_errors_are_one_readable_line(cfg, override, message):
    with pytest.raises(UserError, match=message) as caught:
        apply_overrides(cfg, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["train.max_iter 7", "train.max_iter = 7", "train.max_iter =7"])
def test_a_value_that_stands_apart_is_put_together(cfg, words):
    with pytest.raises(UserError, match=r"Did you mean train\.max_iter=7 \(without spaces"):
        apply_overrides(cfg, ["train.betas=[1,2]", *words.split()])
    assert cfg.train.max_iter == 100


def test_an_override_after_a_lone_key_is_not_its_value(cfg):
    with pytest.raises(UserError, match=r"Did you mean train\.max_iter=100 "):
        apply_overrides(cfg, ["train.max_iter", "optimizer.lr=1"])


def test_override_inside_an_interpolated_group_changes_that_place_alone(cfg):
    # test.mapper stands for the whole of train.mapper; its inner interpolations must keep their meaning:
    # half follows its own copy's size, seed pointed out of the group and keeps its value 9.
    apply_overrides(cfg, ["dataloader.test.mapper.size=40"])
    assert dict(cfg.dataloader.test.mapper) == {"size": 40, "half": 40, "seed": 9}
    assert dict(cfg.dataloader.train.mapper) == {"size": 3, "half": 3, "seed": 9}


def test_dict_override_of_an_interpolated_group_keeps_its_other_keys(cfg):
    apply_overrides(cfg, ["dataloader.test.mapper={size:40}"])
    assert dict(cfg.dataloader.test.mapper) == {"size": 40, "half": 40, "seed": 9}
    assert cfg.dataloader.train.mapper.size == 3


def test_override_of_a_target_lets_its_parameters_follow(cfg):
    apply_overrides(cfg, ["optimizer._target_=torch.optim.Adam", "optimizer.amsgrad=true"])
    assert cfg.optimizer.amsgrad is True
    with pytest.raises(UserError, match="momentum"):  # a parameter of SGD, not of Adam
        apply_overrides(cfg, ["optimizer.momentum=0.9"])


@pytest.mark.parametrize(
    ("override", "rate"),
    [("optimizer._target_=torch.optim.Adam", 1e-4), ("optimizer={_target_:torch.optim.Adam,lr:0.1}", 0.1)],
)
def test_another_target_keeps_what_it_takes_and_no_more(cfg, override, rate):
    cfg.optimizer.momentum = 0.9  # Adam has none
    apply_overrides(cfg, [override])
    found = OmegaConf.to_container(cfg.optimizer)
    assert found == {"_target_": "torch.optim.Adam", "params": "???", "lr": rate}


def test_a_target_that_takes_any_name_keeps_all(cfg):
    cfg.optimizer.momentum = 0.9
    apply_overrides(cfg, ["optimizer._target_=sam_d2.engine.torchvision_weights.torchvision_mask_rcnn"])
    assert cfg.optimizer.momentum == 0.9


DANGEROUS = [
    "os.system",
    "builtins.eval",
    "torchx.load",
    "torch",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.os.system",
    "torch.nn.modules.module.torch.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.utils.data.datapipes.utils.decoder.basichandlers",
    "torch.ops.load_library",
    "torch.classes.load_library",
    "torch.jit.load",
    "torch.multiprocessing.spawn",
    "torch.nn.functional",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.__setattr__",
    "torchvision.io.write_file",
    "torchvision.datasets.utils.download_and_extract_archive",
    "segment_anything.build_sam_vit_b",
    "fvcore.common.config.CfgNode.load_cfg",
    "fvcore.common.file_io.PathManager.rm",
    "detectron2.config.LazyConfig.load",
    "detectron2.utils.registry.locate",
    "detectron2.data.build.logging.FileHandler",
    "sam_d2.config.load_config",
    "sam_d2.cli.run_main",
]


@pytest.mark.parametrize("target", DANGEROUS)
def test_yaml_and_overrides_may_not_call(target, tmp_path, cfg):
    for body in (
        f"{{_target_: {target}}}",
        f"{{a: [{{b: {{_target_: {target}}}}}]}}",
        f"{{name: {target}, a: {{_target_: '${{..name}}'}}}}",
        f"{{a: '${{oc.create:{{_target_: {target}}}}}'}}",
        f"{{_target_: sam_d2.config_targets.bind, _partial_: {target}}}",
    ):
        with pytest.raises(UserError, match=r"run\.yaml"):
            load_config(_yaml(tmp_path, body))
    for override in (
        f"model._target_={target}",
        f"+train.hook={{_target_:{target}}}",
        f"+train.hooks=[{{_target_:{target}}}]",
        f"+lr_multiplier.act._partial_={target}",
    ):
        with pytest.raises(UserError, match="override"):
            apply_overrides(cfg.copy(), [override])


def test_a_package_whose_name_begins_like_a_listed_one_is_not_listed():
    with pytest.raises(UserError, match=r"torch\.nnx\.Linear', which YAML files and overrides may not"):
        check_target("model._target_", "torch.nnx.Linear", "run.yaml")


def test_overrides_may_not_point_a_target_at_a_string(cfg):
    with pytest.raises(UserError, match=r"os\.system"):
        apply_overrides(cfg, ["+train.name=os.system", "+train.hook={_target_:'${train.name}'}"])


def test_yaml_target_that_is_a_node_or_a_number_is_refused(tmp_path):
    for body in ("{_target_: {_target_: torch.nn.ReLU}}", "{_target_: 3}", "{_target_: null}"):
        with pytest.raises(UserError, match="import path"):
            load_config(_yaml(tmp_path, body))


def test_yaml_tags_are_refused(tmp_path):
    marker = tmp_path / "ran"
    for tag in (f"!!python/object/apply:os.mkdir ['{marker}']", "!!python/name:os.system"):
        with pytest.raises(UserError, match=r"run\.yaml"):
            load_config(_yaml(tmp_path, tag))
    assert not marker.exists()


def test_yaml_groups_that_contain_each_other_are_refused(tmp_path):
    with pytest.raises(UserError, match="contains itself"):
        load_config(_yaml(tmp_path, "{a: {x: '${model.b}'}, b: {y: '${model.a}'}}"))


def test_a_py_config_may_call_what_it_likes_and_overrides_respect_that(config_file):
    config_file.write_text(LEAF + "\nimport pathlib\ntrain.folder = dict(_target_=pathlib.PurePosixPath)\n")
    cfg = apply_overrides(load_config(config_file), ["train.max_iter=3"])
    assert cfg.train.folder._target_ == "pathlib.PurePosixPath"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (LEAF + "\ntrain.max_iter = (\n", r"leaf\.py.*[Ll]ine 6"),
        ("from .comon import model\n", r"leaf\.py:1.*comon\.py"),
        ("import a_package_that_is_absent\n", r"leaf\.py:1: ModuleNotFoundError.*a_package_that_is_absent"),
        (LEAF + "\ntrain.max_iter = undefined\n", r"leaf\.py:6: NameError"),
        ("from .common import model, train\n", "does not define dataloader, optimizer, lr_multiplier"),
        (LEAF + "\ntrain = 5\n", "does not define train"),
        (
            LEAF + "\ndef build():\n    pass\n\ntrain.hook = dict(_target_=build)\n",
            "Move it out of the config",
        ),
        (LEAF + "\ntrain.hook = lambda x: x\n", "Move it out of the config"),
    ],
)
def test_broken_config_files(config_file, body, message):
    config_file.write_text(body)
    importer = builtins.__import__
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        load_config(config_file)
    assert builtins.__import__ is importer
    assert "\n" not in str(caught.value)


def test_user_errors_of_a_config_pass_through(config_file):
    config_file.write_text("from sam_d2.errors import UserError\nraise UserError('no weights')\n")
    with pytest.raises(UserError, match=r"^no weights$"):
        load_config(config_file)


def test_missing_file_suggests_a_neighbour(config_file):
    with pytest.raises(UserError, match=r"leef\.py does not exist\. Did you mean .*leaf\.py\?"):
        load_config(config_file.with_name("leef.py"))
    with pytest.raises(UserError, match=r"expected a \.py or \.yaml"):
        (config_file.parent / "config.json").write_text("{}")
        load_config(config_file.parent / "config.json")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "a: 1\na: 2\n", "model: 3\n"])
def test_broken_yaml(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")


def test_yaml_reads_short_floats_as_numbers(tmp_path):
    assert load_config(_yaml(tmp_path, "{lr: 1e-4}")).model.lr == 1e-4


def test_import_path_is_the_shortest_that_yaml_may_name():
    assert import_path(torch.nn.Linear) == "torch.nn.Linear"  # it lives in torch.nn.modules.linear
    assert import_path(torch.optim.AdamW) == "torch.optim.AdamW"
    assert import_path(torch.nn.Linear.reset_parameters) == "torch.nn.Linear.reset_parameters"
    assert import_path(Path) == "pathlib.Path"


def test_bind_by_name_and_by_value():
    assert bind("torch.nn.LayerNorm", eps=0.5)(4).eps == 0.5
    assert bind(torch.nn.GELU) is torch.nn.GELU
    with pytest.raises(UserError, match="cannot be imported"):
        bind("torch.nn.LayerNrm")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("train.max_iter=abc", "a whole number"),
        ("train.max_iter=1.5", "a whole number"),
        ("optimizer.lr=fast", "a number"),
        ("train.eval_base=1", "true or false"),
        ("train.seed=true", "a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(override, wanted):
    cfg = load_config(Path(__file__).resolve().parents[1] / "configs" / "sam_tiny.py")
    with pytest.raises(UserError, match=f"{wanted} is expected"):
        apply_overrides(cfg, [override])


def test_numbers_may_be_written_otherwise():
    cfg = load_config(Path(__file__).resolve().parents[1] / "configs" / "sam_tiny.py")
    apply_overrides(cfg, ["train.max_iter=1e3", "optimizer.lr=1", "train.clip_gradient_norm=0.1", "train.output_dir=7"])
    assert cfg.train.max_iter == 1000 and isinstance(cfg.train.max_iter, int)
    assert cfg.optimizer.lr == 1
