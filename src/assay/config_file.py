"""Configs from files and plain values. Strict: an unknown field is an error that names the nearest one.

The config reader is imported once a file is read.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from assay.config import Experiment
from assay.errors import AssayError, unknown_name
from assay.file_kinds import refuse_stand_in

_MANIFEST = "assay.manifest/"


def load(path: Path) -> Experiment:
    """An Experiment from a YAML or JSON file; unknown fields and wrong types are refused by name.

    A file without ``recipe`` is a recipe of its own, named after the file. The manifest.json of a run is its config.
    """
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"field {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="aliases are not supported", problem_mark=self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

    try:
        if path.exists() and not path.is_file():
            raise AssayError(
                f"cannot read config {str(path)!r}: it is not a file; give the path of a YAML or JSON file"
            )
        content = path.read_bytes()
        refuse_stand_in(path, content)
        values = yaml.load(content.decode("utf-8"), StrictLoader)  # a SafeLoader
    except OSError as error:
        raise AssayError(
            f"cannot read config {str(path)!r}: {error.strerror}; give a config file, or a recipe"
        ) from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise AssayError(f"config {str(path)!r} is not valid{where}: {error.problem}; mend it there") from error
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:  # of yaml's constructors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AssayError(
            f"config {str(path)!r} is neither YAML nor JSON: {reason}; mend it, or write it anew as UTF-8 text"
        ) from error
    if not isinstance(values, dict):
        raise AssayError(f"config {str(path)!r} must hold fields and values, such as 'seed: 1'")
    if str(values.get("schema", "")).startswith(_MANIFEST):
        values = values.get("config")
        if not isinstance(values, dict):
            raise AssayError(f"the manifest {str(path)!r} holds no config: give another run's, or a recipe")
    return from_dict({"recipe": path.stem, **values})


def from_dict(values: dict[str, Any]) -> Experiment:
    """An Experiment from plain values; see ``load``."""
    import cattrs
    from cattrs.errors import ClassValidationError, IterableValidationError

    _check_keys(values)
    _check_lists(values, Experiment)
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _exactly)
    try:
        return converter.structure(values, Experiment)
    except (ClassValidationError, IterableValidationError) as error:
        raise _first_error(error) from error


def _check_keys(values: Any) -> None:
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str):
            raise AssayError(f"config field {key!r} is no name: fields are words, such as 'seed'")
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_keys(inner)


def _check_lists(value: Any, kind: Any, where: str = "") -> None:
    """Refuses a text or an object where a list belongs: the reader would take their letters or names one by one."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise AssayError(f"config field {where!r}: expected a list, got {reprlib.repr(value)}")
        for number, inner in enumerate(value):
            _check_lists(inner, get_args(kind)[0], f"{where}.[{number}]")
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        for name in kinds.keys() & value.keys():
            _check_lists(value[name], kinds[name], f"{where}.{name}".strip("."))


def _exactly(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
        return float(value)  # YAML 1.1 reads 1e-3 as text
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise AssayError(f"expected {kind.__name__}, got {reprlib.repr(value)}")
    if isinstance(value, str) and "\0" in value:
        raise AssayError("holds a NUL, which no name or path has: take it out")
    try:
        return kind(value)
    except OverflowError as error:  # an integer that no float holds
        raise AssayError(f"expected {kind.__name__}, got {reprlib.repr(value)}") from error


def _first_error(error: BaseException, where: str = "") -> AssayError:
    """The innermost cause as one sentence with the field's path."""
    from cattrs import AttributeValidationNote, IterableValidationNote
    from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [f.name for f in dataclasses.fields(error.cl)]
        return unknown_name(f"field in {where or 'the config'}", sorted(error.extra_fields)[0], known)
    if isinstance(error, ClassValidationError | IterableValidationError):
        inner = error.exceptions[0]
        steps = [
            note.name if isinstance(note, AttributeValidationNote) else f"[{note.index}]"
            for note in getattr(inner, "__notes__", [])
            if isinstance(note, AttributeValidationNote | IterableValidationNote)
        ]
        return _first_error(inner, ".".join([where, *steps[:1]]).strip("."))
    if isinstance(error, AttributeError | TypeError):
        return AssayError(f"config field {where!r} must hold fields and values, or a list of them")
    return AssayError(f"config field {where!r}: {error}")
