"""JSON to frozen dataclasses and back, where anything unexpected is an error.

Contract  A type hint is the schema: int, float, bool, str, StrEnum, tuple, dict[str, T], T | None, dataclass.
          An unknown, missing or twice written key, a value of another type, NaN and infinity are refused;
          the message names the place, as in `decoder.layers`.
Elsewhere the manifest that is read this way: manifest.py.
"""

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class StrictJsonError(ValueError):
    """What is wrong, with the place; the caller turns it into an error that names the file."""


def parse(text: str) -> Any:
    """Read JSON text.

    Raises:
        StrictJsonError: no JSON, a key written twice, NaN or infinity, or nested too deep to read.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise StrictJsonError("nested too deep") from error
    except StrictJsonError:
        raise
    except ValueError as error:  # JSONDecodeError, or a number of more digits than Python converts
        raise StrictJsonError(f"not JSON ({error})") from error


def to_dataclass(kind: type[T], value: object, where: str = "") -> T:
    """Make a dataclass of parsed JSON, field by field.

    Args:
        kind: the dataclass; its hints are the schema.
        where: the place of `value`, for messages; empty at the top.

    Raises:
        StrictJsonError: an unknown or missing key, or a value of another type.
    """
    assert dataclasses.is_dataclass(kind)
    if not isinstance(value, dict):
        _wrong(where, value, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise StrictJsonError(f"unknown key {_join(where, str(key))}")
    hints = typing.get_type_hints(kind)
    made = {}
    for name, field in fields.items():
        if name in value:
            made[name] = _convert(hints[name], value[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise StrictJsonError(f"missing key {_join(where, name)}")
    try:
        return kind(**made)
    except ValueError as error:  # a dataclass may check itself
        raise StrictJsonError(f"{where or 'manifest'}: {error}") from error


def to_json(value: object) -> Any:
    """Plain JSON values of a dataclass: the inverse of `to_dataclass`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            _wrong(where, value, "an object")
        return {key: _convert(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return to_dataclass(typing.cast(type[Any], hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = [member.value for member in hint]
        return hint(value) if value in known else _wrong(where, value, f"one of {', '.join(map(str, known))}")
    return _scalar(hint, value, where)


def _optional(arguments: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    inner = [argument for argument in arguments if argument is not types.NoneType]
    assert len(inner) == 1, "only `T | None` is a schema"
    return _convert(inner[0], value, where)


def _tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _wrong(where, value, "a list")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(kinds) != len(value):
        _wrong(where, value, f"a list of {len(kinds)}")
    return tuple(
        _convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _scalar(hint: Any, value: object, where: str) -> Any:
    names: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    assert hint in names, f"{hint} is no schema"
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else _wrong(where, value, "a finite number")
    if type(value) is not hint:
        _wrong(where, value, names[hint])
    return value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise StrictJsonError(f"key {twice} is written twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not allowed")


def _wrong(where: str, value: object, needed: str) -> NoReturn:
    shown = repr(value)
    raise StrictJsonError(
        f"{where or 'the whole'}: {shown[:60]}{'…' if len(shown) > 60 else ''}, {needed} is needed"
    )


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
