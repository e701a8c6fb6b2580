"""YAML from a stranger: data, and not more of it than a config has."""

import json
import time

import pytest

from sam_d2.config import load_config
from sam_d2.config_overrides import apply_overrides
from sam_d2.errors import UserError
from sam_d2.evaluation.report_data import Run, flat_config
from sam_d2.yaml_limits import MAX_BYTES, MAX_VALUES, check_yaml

GROUPS = "model: {}\ndataloader: {}\noptimizer: {}\nlr_multiplier: {}\n"


def refused(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf"config file .*run\.yaml: .*{words}"):
        load_config(file)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['{canary}']",
        "!!python/object/new:os.mkdir ['{canary}']",
        "!!python/object:pathlib.Path {{}}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{canary}']",
        "!include {canary}",
    ],
)
def test_tags(tag, tmp_path, canary):
    refused(tmp_path, f"{GROUPS}train: {{a: {tag.format(canary=canary)} }}\n", "could not determine a constructor")


def bomb(levels):
    """Each level is nine times the one below: nine to the power of ``levels`` values in some hundred bytes."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_aliases_that_multiply(tmp_path):
    refused(tmp_path, f"{GROUPS}train: {{}}\n{bomb(9)}", f"more than {MAX_VALUES} values, most of them by aliases")
    merges = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40))
    refused(tmp_path, f"{GROUPS}train: {{}}\n{merges}", f"more than {MAX_VALUES} values")


def test_the_same_in_a_report(tmp_path):
    run = Run(tmp_path, [], [], {}, bomb(9))
    with pytest.raises(UserError, match=f"more than {MAX_VALUES} values"):
        flat_config(run)


def test_aliases_that_do_not_multiply_are_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"{GROUPS}train: {{a: &a [1, 2], b: *a, c: *a}}\n")
    assert load_config(file).train == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}
    check_yaml("a: [" + "x, " * 1000 + "x]", "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [*a]", "values|recursive"),
        ("a: &a {<<: *a}", "values|recursive"),
        ("a: " + "9" * 5000, "limit .* for integer string conversion"),
        ("a: " + "x" * MAX_BYTES, r"it holds 10486\d\d bytes"),
        ("a: \x00", "special characters are not allowed"),
    ],
    ids=["deep", "in itself", "merged into itself", "a number of 5000 digits", "a megabyte", "zero byte"],
)
def test_other_bombs(text, words, tmp_path):
    refused(tmp_path, f"{GROUPS}train: {{}}\n{text}\n", words)


@pytest.mark.parametrize(
    "override",
    [
        "train.a=" + "[" * 400 + "]" * 400,
        "train.a=" + "{a:" * 400 + "1" + "}" * 400,
        "train.a=" + "9" * 5000,
        "train.a=1e999999999999",
        "train." * 500 + "a=1",
        "train.a=${" * 200,
        "train.a='${oc.create:{_target_:os.system}}'",
        "+train.b=\x1b[31m",
        "+train.b=\x00",
    ],
    ids=lambda override: f"{override[:20]!a}",
)
def test_overrides_end_in_a_value_or_an_error_of_ours(override, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"{GROUPS}train: {{a: null}}\n")
    cfg = load_config(file)
    try:
        apply_overrides(cfg, [override])
    except UserError as error:
        assert "override" in str(error)
    else:
        json.dumps(str(cfg.train))
