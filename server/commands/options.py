"""Command line options made from a settings class, so that names, types, defaults and help are written once."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

T = TypeVar("T")
_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting: ``kind`` is its type without None; a ``required`` one has no default; ``env`` may also give it.

    ``group`` is the field of the settings that holds this one, if it is nested. ``given_as`` is the flag where it isn't
    made of the name; a ``positional`` one has no flag, but a place. ``panel``: under which heading help shows it.
    """

    name: str
    kind: Any
    default: Any
    required: bool
    help: str
    env: str | None = None
    group: str | None = None
    given_as: str | None = None
    positional: bool = False
    panel: str | None = None

    @property
    def flag(self) -> str:
        if self.positional:
            return self.name.upper()
        return self.given_as or "--" + self.name.replace("_", "-")

    @property
    def repeatable(self) -> bool:
        return get_origin(self.kind) in (list, tuple, dict)


PRESET = Field("preset", str, None, False, "a preset's name, or a YAML file; other options go before it")


def fields_of(settings: type) -> list[Field]:
    """The fields of a pydantic model, or of a dataclass and of the dataclasses in it.

    What no option can say (collections of dataclasses) is left out and keeps its default.
    """
    if issubclass(settings, BaseModel):
        prefix = settings.model_config.get("env_prefix", "") if issubclass(settings, BaseSettings) else None
        panels = _panels(settings)
        return [
            Field(
                name,
                _without_none(info.annotation),
                None if info.is_required() else info.get_default(call_default_factory=True, validated_data={}),
                info.is_required(),
                info.description or "",
                None if prefix is None else f"{prefix}{name}".upper(),
                given_as=_extra(info, "flag"),
                positional=bool(_extra(info, "positional")),
                panel=panels.get(name),
            )
            for name, info in settings.model_fields.items()
        ]
    hints = get_type_hints(settings)
    dataclass: Any = settings
    fields = []
    for field in dataclasses.fields(dataclass):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            fields += [dataclasses.replace(inner, group=field.name) for inner in fields_of(cast(type, hint))]
        elif not any(dataclasses.is_dataclass(part) for part in get_args(hint)):
            fields.append(_dataclass_field(field, hint))
    return fields


def with_options(
    settings: type,
    run: Callable[..., None],
    help_texts: Mapping[str, str] | None = None,
    extra: Sequence[Field] = (),
    preset: Callable[[str], Mapping[str, Any]] | None = None,
) -> Callable[..., None]:
    """A typer command with an option a field; it validates what was given and calls ``run(settings, **extra)``.

    help_texts: by field, where the class has none; extra: options that are not the settings' own, passed on as text;
    preset: the settings that a ``--preset`` stands for, over which the other options go.
    """
    texts = help_texts or {}
    fields = [dataclasses.replace(field, help=texts.get(field.name, field.help)) for field in fields_of(settings)]
    fields += extra
    if preset is not None:
        fields.append(PRESET)

    def command(**given: Any) -> None:
        others = {field.name: given.pop(field.name) for field in extra}
        name = given.pop(PRESET.name, None)
        chosen = {field: value for field, value in given.items() if value is not None}
        run(build(settings, chosen, preset(name) if preset is not None and name else {}), **others)

    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_option(field), annotation=_annotation(field)
        )
        for field in fields
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__
    return command


def build(settings: type[T], given: dict[str, Any], preset: Mapping[str, Any] | None = None) -> T:
    """Settings from options (and the environment); typer.BadParameter names the option and what is wrong with it.

    preset: values, by field or by group and field, of what is not given.
    """
    by_name = {field.name: field for field in fields_of(settings)}
    values: dict[str, Any] = deepcopy(dict(preset or {}))
    for name, value in given.items():
        group = by_name[name].group
        target = values if group is None else values.setdefault(group, {})
        target[name] = _collected(by_name[name], value)
    try:
        if issubclass(settings, BaseSettings):
            return settings(**values)
        return TypeAdapter(settings).validate_python(values)
    except ValidationError as error:
        # Never the value itself: it may be a key.
        raise typer.BadParameter("\n".join(_complaint(by_name, problem) for problem in error.errors())) from None


def _collected(field: Field, value: Any) -> Any:
    """What was given of one option: NAME=VALUE pairs as a mapping, the items of a tuple repeated or between commas."""
    origin = get_origin(field.kind)
    if origin is tuple:
        return [item.strip() for part in value for item in part.split(",") if item.strip()]
    return _pairs(field, value) if origin is dict else value


def _pairs(field: Field, given: list[str]) -> dict[str, str]:
    """NAME=VALUE, repeated."""
    parts = [item.rpartition("=") for item in given]
    if any(not name for name, _, _ in parts):
        raise typer.BadParameter(f"{field.flag}: must be NAME=VALUE")
    return {name: value for name, _, value in parts}


def _extra(info: FieldInfo, key: str) -> Any:
    """What a pydantic field says of itself beyond its type (``json_schema_extra``)."""
    extra = info.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def _panels(settings: type[BaseModel]) -> dict[str, str]:
    """The group of each field, of a class whose ``GROUPS`` names the first field of each."""
    groups: Mapping[str, str] = getattr(settings, "GROUPS", {})
    panels: dict[str, str] = {}
    panel: str | None = None
    for name in settings.model_fields:
        panel = groups.get(name, panel)
        if panel is not None:
            panels[name] = panel
    return panels


def _dataclass_field(field: dataclasses.Field[Any], hint: Any) -> Field:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is dataclasses.MISSING
    positional = bool(field.metadata.get("positional"))
    return Field(field.name, _without_none(hint), None if required else default, required, "", positional=positional)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else str
    return annotation


def _annotation(field: Field) -> Any:
    """Text for all but flags: the settings class converts and judges, here as for the environment."""
    if field.positional:
        return list[str] if field.repeatable else str
    if field.kind is bool:
        return bool | None
    return list[str] | None if field.repeatable else str | None


def _option(field: Field) -> Any:
    notes = [note for note in (_default_note(field), field.env and f"env: {field.env}") if note]
    text = f"{field.help} [{'; '.join(notes)}]" if notes else field.help
    # Typer reads help as rich markup, in which [name: ...] would be a tag.
    text = text.replace("[", "\\[")
    if field.positional:
        return typer.Argument(metavar=field.flag, help=text, show_default=False)
    if field.kind is bool:
        return typer.Option(None, f"{field.flag}/--no-{field.flag[2:]}", help=text, rich_help_panel=field.panel)
    return typer.Option(
        None,
        field.flag,
        help=text,
        metavar=_metavar(field.kind),
        show_default=False,
        rich_help_panel=field.panel,
    )


def _default_note(field: Field) -> str:
    if field.required:
        # Of a place, typer says so itself.
        return "" if field.positional else "required"
    if field.default is None or field.default == [] or field.default == ():
        return ""
    if isinstance(field.default, tuple):
        return f"default: {','.join(map(str, field.default))}"
    return f"default: {str(field.default).lower() if field.kind is bool else field.default}"


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    return "NAME=VALUE" if get_origin(kind) is dict else _METAVARS.get(kind, "TEXT")


def _complaint(by_name: dict[str, Field], problem: Any) -> str:
    # A nested field comes after its group, an item of a list after its field.
    field = next((by_name[str(part)] for part in problem["loc"] if str(part) in by_name), None)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if field is None:
        return message
    return f"{field.flag}{f' (or {field.env})' if field.env else ''}: {message}"
