"""Configs in YAML, and overrides of them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing import Target
from fuzzing.mutate import NAMES, NUMBERS, mutated_bytes, mutated_tree

CONFIG: dict[str, Any] = {
    "model": {
        "_target_": "torch.nn.Linear",
        "in_features": 4,
        "out_features": "${.in_features}",
        "image_encoder": {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": [3, 3]},
        "norm": {"_target_": "sam_d2.config_targets.bind", "_partial_": "torch.nn.LayerNorm", "eps": 1e-6},
        "prompt": "box",
    },
    "dataloader": {
        "train": {"dataset": {"names": ""}, "total_batch_size": 2, "num_workers": 0},
        "test": {"dataset": "${..train.dataset}", "num_workers": 0},
        "detector": {"config": "", "min_score": 0.05},
    },
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
    "lr_multiplier": {"values": [1.0, 0.1], "num_updates": 10},
    "train": {"max_iter": 10, "seed": 1, "output_dir": "", "amp": {"enabled": False}, "init_checkpoint": None},
}
_TARGETS = [
    "os.system",
    "torch.load",
    "torch.hub.load",
    "builtins.eval",
    "subprocess.run",
    "torch.nn.ReLU",
    "torch.nn",
    "torchvision.models.WeightsEnum.get_state_dict",
    "sam_d2.engine.download.download",
    "torch.nn.Module.apply",
    "sam_d2.evaluation.results.write_atomically",
    "detectron2.config.LazyConfig.load",
    "torch.optim.AdamW",
    "",
    "torch.nn.modules.module.torch.load",
    "torch.nn.Linear.__init__",
    "${train.output_dir}",
    "a.b",
    ".",
    "torch.",
    "detectron2.modeling.ResNet.make_default_stages",
    "numpy.load",
    "sam_d2.config_targets.bind",
]
_TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e]\n",
    "a: !!python/object/apply:os.system ['touch ran']\n",
    "a: !!python/name:os.system\n",
    "a: !!binary aGVsbG8=\n",
    "a: &a {<<: *a}\n",
    "a: &a [*a]\n",
    "a: 2001-99-99\n",
    "a: 1:99:99\n",
    "a: 0x_\n",
    "a: " + "9" * 5000 + "\n",
    "? [a, b]\n: c\n",
    "a: " + "[" * 2000 + "]" * 2000 + "\n",
    "a: !!int x\n",
    "a: !!float x\n",
    "a: !!timestamp x\n",
    "--- {}\n--- {}\n",
    "%YAML 9.9\n--- {}\n",
]
_VALUES = [
    "1",
    "-1",
    "1e400",
    "nan",
    "null",
    "true",
    "[]",
    "{}",
    "[1,2",
    "{a:1}",
    "'a b'",
    '"',
    "${train.seed}",
    "${x}",
    "${oc.env:HOME}",
    "${.lr}",
    "${......a}",
    "${optimizer}",
    "[1,[2,{a:b}]]",
    "{_target_:os.system}",
    "\\",
    "a,b",
    "range(3)",
    "choice(1,2)",
    "glob(*)",
    "sort(1,2)",
    "extend_list(1)",
    "cast(1)",
    "int(x)",
    "str([1])",
    "???",
    "${train}",
    "${oc.create:{_target_:os.system}}",
    "shuffle([1,2])",
    "tag(a,b)",
    "0x10",
    "1_0",
    "inf",
    "'",
]


class _ConfigTarget(Target):
    def prepare(self, folder: Path) -> None:
        """Write the config that overrides are of."""
        from omegaconf import OmegaConf

        self.file = folder / "config.yaml"
        self.keys = sorted(_keys(CONFIG))
        self.config = OmegaConf.create(CONFIG, flags={"allow_objects": True})


class YamlConfig(_ConfigTarget):
    """A config.yaml."""

    name = "yaml"
    share = 3

    def make(self, random: Random) -> bytes:
        """Change the config as a value, add what only YAML can say, or change its text as bytes."""
        tree = mutated_tree(CONFIG, random)
        if random.random() < 0.4 and isinstance(tree, dict):
            group = tree.get(random.choice(list(CONFIG)))
            if isinstance(group, dict):
                group["_target_" if random.random() < 0.7 else "_partial_"] = random.choice(_TARGETS)
        try:
            text = yaml.safe_dump(tree, allow_unicode=random.random() < 0.5).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, RecursionError):
            text = yaml.safe_dump(CONFIG).encode()
        kind = random.random()
        if kind < 0.2:
            text += random.choice(_TEXTS).encode()
        elif kind < 0.35:
            text = mutated_bytes(text, random)
        return text

    def read(self, content: bytes) -> None:
        """Load it, as a run's config is loaded, and save it again."""
        from sam_d2.config import config_text, load_config
        from sam_d2.config_numbers import check_numbers

        self.file.write_bytes(content)
        cfg = load_config(self.file)
        check_numbers(cfg)
        config_text(cfg)

    def parses(self, content: bytes) -> bool:
        """Whether PyYAML finds nodes in it."""
        try:
            return yaml.compose(content, Loader=yaml.SafeLoader) is not None
        except (yaml.YAMLError, ValueError, RecursionError):
            return False


class Overrides(_ConfigTarget):
    """``key=value`` arguments, one a line."""

    name = "overrides"
    share = 4

    def make(self, random: Random) -> bytes:
        """Put keys, operators and values together, and change some characters."""
        lines = [self._override(random) for _ in range(random.choice([1, 1, 2, 3]))]
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def _override(self, random: Random) -> str:
        key = random.choice(self.keys)
        if random.random() < 0.3:
            parts = [*key.split("."), random.choice([*NAMES, "0", "99", "-1", "new", "_target_"])]
            random.shuffle(parts)
            key = ".".join(parts[: random.randint(1, 3)])
        value = random.choice(_VALUES)
        kind = random.random()
        if kind < 0.15:
            value = str(random.choice(NUMBERS))
        elif kind < 0.25:
            value = random.choice(NAMES)
        elif kind < 0.4:
            key, value = f"{key}._target_", random.choice(_TARGETS)
        elif kind < 0.5:
            value = "[" * (depth := random.choice([1, 5, 300])) + value + "]" * depth
        text = (
            random.choice([*[""] * 12, *["+"] * 6, "++", "~", "-"])
            + key
            + random.choice([*["="] * 20, " ", ":="])
            + value
        )
        if random.random() < 0.07:
            place = random.randrange(len(text) + 1)
            text = text[:place] + random.choice("=.,[]{}()'\"\\$@:~ \n\x00é") + text[place:]
        return text.replace("\n", " ")

    def read(self, content: bytes) -> None:
        """Apply them to the config, and check and save what comes of it."""
        from sam_d2.config import config_text
        from sam_d2.config_numbers import check_numbers
        from sam_d2.config_overrides import apply_overrides

        cfg = apply_overrides(self.config.copy(), content.decode("utf-8", "surrogatepass").split("\n"))
        check_numbers(cfg)
        config_text(cfg)

    def parses(self, content: bytes) -> bool:
        """Whether Hydra's grammar takes each of them."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            OverridesParser.create().parse_overrides(content.decode("utf-8", "surrogatepass").split("\n"))
        except (HydraException, RecursionError, ValueError):  # the last of too many digits
            return False
        return True


def _keys(tree: Any, where: str = "") -> set[str]:
    names = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    found = {where} - {""}
    for name in names:
        found |= _keys(tree[name], f"{where}.{name}" if where else str(name))
    return found
