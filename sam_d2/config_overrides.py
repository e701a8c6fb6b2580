"""Strict ``key=value`` overrides: a key that does not exist is an error, not a new key that nobody reads."""

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_d2.config_targets import BIND, PARTIAL, check_target, find_targets, parameter_names, takes_any_name
from sam_d2.config_yacs import lazy_key
from sam_d2.errors import UserError

_DEEPEST = 20
"""Lists in lists: a config has three; OmegaConf takes time that doubles with each few levels."""


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change a config in place by ``key=value`` arguments, the last word after files and other options.

    Values follow Hydra's override grammar: ``train.max_iter=200``, ``model.pixel_mean=[0,0,0]``, ``x=null``,
    ``x='a b'``, ``x=${train.seed}``. A key is known if it stands in the config or is a parameter of the
    ``_target_`` of its node. Where a part of the key is an interpolation of a whole group, the named place
    gets its own copy of the group first, so that nothing else changes and nothing is lost.

    Args:
        cfg: the config, as :func:`sam_d2.config.load_config` gives it.
        overrides: ``key=value``, or ``+key=value`` to add a key that the config does not know.

    Returns:
        The same config.

    Raises:
        UserError: an override cannot be parsed, its key is unknown (the message suggests the nearest), or it
            calls something that overrides may not call.
    """
    trusted = _targets(cfg)  # a .py config may call what it likes
    for position, text in enumerate(overrides):
        if "=" not in text and not text.startswith(("-", "~")):
            raise UserError(_no_equals_sign(cfg, text, overrides[position + 1 :]))
        try:
            value = _apply(cfg, text)
            # Going through a config takes as long as a step of a small model, and numbers name no target.
            if _has_text(value) or position == len(overrides) - 1:
                for target, key in _targets(cfg).items():
                    if target not in trusted:
                        check_target(key, target, f"override {text!r}")
        except (ValueError, RecursionError, OmegaConfBaseException) as error:  # too many digits, too deep, no place
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"override {text[:80]!r} cannot be applied ({reason}).") from error
    return cfg


def given_keys(overrides: Sequence[str]) -> set[str]:
    """Return the dotted keys that overrides give a value, whether each by itself or within a group.

    Args:
        overrides: as :func:`apply_overrides` has taken them; ``train={max_iter:200}`` gives ``train`` and
            ``train.max_iter``.
    """
    parsed = map(_parse, overrides)
    return {key for one in parsed for key in _keys_of(one.key_or_group, one.value())}


def _keys_of(key: str, value: Any) -> Iterator[str]:
    yield key
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield from _keys_of(f"{key}.{name}", inner)


def _targets(cfg: DictConfig) -> dict[Any, str]:
    """Return the targets of a config, each with the first key where it stands."""
    found: dict[Any, str] = {}
    for key, target in find_targets(cfg):
        found.setdefault(target if isinstance(target, str) else repr(target), key)
    return found


def _apply(cfg: DictConfig, text: str) -> Any:
    """Apply an override and return its value."""
    override = _parse(text)
    key, value = override.key_or_group, override.value()
    if _depth(value) > _DEEPEST:
        raise UserError(
            f"override {text[:80]!r}: its value is nested {_depth(value)} deep, at most {_DEEPEST} is read."
        )
    adds = override.type in (OverrideType.ADD, OverrideType.FORCE_ADD)
    *path, last = key.split(".")
    node: Container = cfg
    for depth, part in enumerate(path):
        if adds and isinstance(node, DictConfig) and node.get(part) is None:
            node[part] = {}
        if not _has(node, part):
            _refuse(cfg, text, ".".join(path[:depth]), node, part)
        node = _own_group(node, part, text, ".".join(path[: depth + 1]))
    if not adds:
        _check_known(cfg, text, ".".join(path), node, {last: value})
    name = int(last) if isinstance(node, ListConfig) else last
    interpolated = isinstance(value, str) and "${" in value
    if _has(node, last) and not interpolated and not OmegaConf.is_interpolation(node, name):
        value = _of_the_same_type(text, _value(node, last), value)
    if isinstance(value, Mapping) and _has(node, last) and isinstance(_value(node, last), DictConfig):
        group = _own_group(node, last, text, key)
        if not adds:
            _drop_what_only_the_old_target_takes(group, value.get("_target_"))
        group.merge_with(value)
    else:
        if last == "_target_" and not adds:
            _drop_what_only_the_old_target_takes(node, value)
        node[name] = value
        if OmegaConf.is_interpolation(node, name):
            try:
                node[name]
            except OmegaConfBaseException as error:
                raise UserError(f"override {text!r}: {str(error).splitlines()[0]}.") from error
    return value


def _has_text(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return isinstance(value, str) or any(map(_has_text, inner))


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _drop_what_only_the_old_target_takes(group: Any, target: Any) -> None:
    """Prepare a group for another ``_target_``, such as an SGD that is to be an AdamW, which has no momentum."""
    if not isinstance(target, str) or "${" in target or target == group.get("_target_") or takes_any_name(target):
        return
    known = parameter_names(target)
    for name in [str(name) for name in group if not str(name).startswith("_")]:
        if name not in known:
            del group[name]


def _of_the_same_type(text: str, present: Any, value: Any) -> Any:
    """Return ``value`` as a number or bool where one stands in the config; anything may replace None, and None all."""
    for kind, accepted, wanted in (
        (bool, bool, "true or false"),
        (int, int, "a whole number"),
        (float, (int, float), "a number"),
    ):
        if isinstance(present, kind) and value is not None:
            if kind is int and isinstance(value, float) and value.is_integer():
                return int(value)
            if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
                raise UserError(f"override {text!r}: {present!r} stands there, so {wanted} is expected.")
            return value
    return value


def _no_equals_sign(cfg: DictConfig, text: str, following: Sequence[str]) -> str:
    """Return the message on a word that is no ``key=value``, with what was probably meant."""
    key, separator, value = text.partition(":")
    yacs = lazy_key(key)
    keys = list(_all_keys(OmegaConf.to_container(cfg, resolve=False)))
    near = [other for other in keys if other.rpartition(".")[2] == key]
    near += difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    leaves = (other for other in near if not isinstance(_select(cfg, other), Container))
    meant = key if key in keys else yacs or next(leaves, None)
    if meant is None:
        hint = "Write key=value, such as train.max_iter=200."
        if os.path.exists(text):  # noqa: PTH110  it is False of what is no path at all
            hint += " A config goes with --config-file, a data set with --dataset."
        return f"override {text!r} has no '=' and is no key of the config. {hint}"
    if not separator:  # "key value", "key = value" and "key =value" come as several words
        value = next((word.removeprefix("=") for word in following if word != "="), "")
    if not value or "=" in value:
        present = _select(cfg, meant)
        value = "VALUE" if present in (None, "") or isinstance(present, Container) else str(present)
    return f"override {text!r} has no '='. Did you mean {meant}={value} (without spaces around the '=')?"


def _select(cfg: DictConfig, key: str) -> Any:
    """Return what stands under a dotted key, None where it has no value."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _unreadable(text: str, error: HydraException) -> str:
    """Return the message on a value that Hydra's grammar does not take, quoted where that mends it."""
    key, _, value = text.partition("=")
    quoted = f"{key}='{value}'"
    if value.startswith(("[", "{")) or "'" in value:
        reason = " ".join(str(error).splitlines()[0].split())
        return (
            f"override {text!r} is not key=value ({reason}). Examples: "
            "train.max_iter=200, model.pixel_mean=[0,0,0], \"train.output_dir='a folder'\"."
        )
    shown = shlex.quote(quoted) if set(quoted) & set('"$`\\!') else f'"{quoted}"'
    return f"override {text!r} cannot be read. As text the value needs quotes of its own: {shown}"


def _parse(text: str) -> Override:
    if text.startswith("-"):
        raise UserError(f"{text!r} is not an option. Options start with --, overrides are key=value; see --help.")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UserError(_unreadable(text, error)) from error
    if override.is_delete():
        raise UserError(f"override {text!r}: a key cannot be removed. Set it instead: {text.lstrip('~')}=null")
    if override.is_sweep_override():
        raise UserError(f"override {text!r} gives several values. For a list write {override.key_or_group}=[...].")
    if override.package is not None:
        raise UserError(f"override {text!r}: '@' has no meaning here; write key=value.")
    return override


def _has(node: Any, part: str) -> bool:
    if isinstance(node, ListConfig):
        return part.isdecimal() and int(part) < len(node)
    return part in node.keys()  # noqa: SIM118  `in node` is False for a key whose value is ???


def _value(node: Any, part: str) -> Any:
    """Return a value with interpolations resolved, None where it has none yet."""
    try:
        return node[int(part) if isinstance(node, ListConfig) else part]
    except OmegaConfBaseException:
        return None


def _own_group(node: Any, part: str, text: str, key: str) -> Any:
    """Return the group under a key; an interpolated one is replaced by a copy of what it stands for."""
    group = _value(node, part)
    if not isinstance(group, Container):
        raise UserError(f"override {text!r}: {key} is {group!r}, not a group of keys. Force it with +{text}")
    name = int(part) if isinstance(node, ListConfig) else part
    if OmegaConf.is_interpolation(node, name):
        node[name] = _copy(group, OmegaConf.to_container(group, resolve=False), depth=1)
        group = node[name]
    return group


def _copy(group: Any, raw: Any, depth: int) -> Any:
    """Copy a group for another place: interpolations that point out of it relatively become their values."""
    names = range(len(raw)) if isinstance(raw, list) else list(raw)
    copied = {}
    for name in names:
        value = raw[name]
        if isinstance(value, dict | list):
            value = _copy(group[name], value, depth + 1)
        elif isinstance(value, str) and any(len(dots) > depth for dots in re.findall(r"\$\{(\.+)", value)):
            value = group[name]
        copied[name] = value
    return list(copied.values()) if isinstance(raw, list) else copied


def _check_known(cfg: DictConfig, text: str, where: str, node: Container, value: Mapping[str, Any]) -> None:
    """Refuse the names in ``value`` that the group ``node`` at key ``where`` neither has nor can take."""
    for name in ("_target_", PARTIAL):  # before its signature is looked at, which imports it
        if isinstance(value.get(name), str):
            check_target(f"{where}.{name}".lstrip("."), value[name], f"override {text!r}")
    for name, inner in value.items():
        if not _has(node, name) and name not in _parameters(node, value):
            _refuse(cfg, text, where, node, name)
        group = _value(node, name) if _has(node, name) else None
        if isinstance(inner, Mapping) and isinstance(group, DictConfig):
            _check_known(cfg, text, f"{where}.{name}".lstrip("."), group, inner)


def _parameters(node: Container, value: Mapping[str, Any]) -> list[str]:
    """Return the parameters of what the node will call once ``value`` is merged into it."""
    if not isinstance(node, DictConfig):
        return []
    calls = {name: value.get(name, _value(node, name)) for name in ("_target_", PARTIAL)}
    return parameter_names(calls["_target_"] if calls["_target_"] != BIND else calls[PARTIAL])


def _refuse(cfg: DictConfig, text: str, where: str, node: Container, name: str) -> NoReturn:
    key = f"{where}.{name}".lstrip(".")
    if isinstance(node, ListConfig):
        raise UserError(f"override {text!r}: {where} is a list of {len(node)} entries, {name!r} is not one of them.")
    siblings = [*map(str, node), *_parameters(node, {})]
    near = [f"{where}.{match}".lstrip(".") for match in difflib.get_close_matches(name, siblings, n=1)]
    everywhere = list(_all_keys(OmegaConf.to_container(cfg, resolve=False)))
    near += difflib.get_close_matches(key, everywhere, n=1)
    near += [other for other in everywhere if other.rpartition(".")[2] == name]
    yacs = lazy_key(text.lstrip("+").partition("=")[0])
    near = [yacs, *near] if yacs else near
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"override {text!r}: the config has no key {key!r}.{hint} To add a new key, write +{text.lstrip('+')}"
    )


def _all_keys(raw: Any, where: str = "") -> Iterator[str]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for name, value in items:
        key = f"{where}.{name}" if where else str(name)
        yield key
        yield from _all_keys(value, key)
