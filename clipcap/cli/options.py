"""Options from dataclasses: a field is an option, a class is a group of the help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints


def arg(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field with its help text; `**metadata` takes argparse's keywords (choices, metavar, nargs, ...)."""
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _Flag(argparse.Action):
    """True when given, without a value, so that `--demo photos/` names a folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"nargs": 0}))

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)


class OnOff(argparse.BooleanOptionalAction):
    """--NAME or --no-NAME, for an option that is neither on nor off where it is not given."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "", **_: Any) -> None:
        super().__init__(option_strings, dest, default=None, help=help)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each option and its default, so that a script's help fits on two screens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if isinstance(action, OnOff):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        option = action.option_strings[-1].replace("_", "-")
        if isinstance(action, _Flag) and action.default is True:  # on unless it is negated
            return f"--[no-]{option.removeprefix('--')}"
        return option if action.nargs == 0 else f"{option} {self._format_args(action, self._metavar(action))}"

    def _format_action(self, action: argparse.Action) -> str:
        # The flag's own line shows its negation too, and who reads this knows --help.
        told = isinstance(action, argparse._StoreFalseAction | argparse._HelpAction)
        return "" if told else super()._format_action(action)

    def _metavar(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind, action.option_strings[-1].lstrip("-").upper().replace("_", "-"))

    def _get_help_string(self, action: argparse.Action) -> str:
        """The help text, with the default unless the text mentions one itself."""
        help = action.help or ""
        default = action.default
        # Compared by identity since False == 0: a flag that is off needs no mention, a limit of 0 does.
        shown = default is not None and default is not argparse.SUPPRESS and default is not False and default != ""
        plain = shown and not isinstance(default, list) and "default" not in help
        return f"{help} (default: {'on' if default is True else '%(default)s'})" if plain else help


class Parser(argparse.ArgumentParser):
    """An argument parser whose options are the fields of dataclasses; each class is a group of the help.

    It is here, and not transformers' `HfArgumentParser`, because that one takes half a second to import.
    """

    def __init__(self, *dataclasses: type, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dataclasses = dataclasses
        for kind in dataclasses:
            group = self.add_argument_group(getattr(kind, "_argument_group_name", None))
            types = get_type_hints(kind)
            for option in fields(kind):
                _add_option(group, option, types[option.name])

    def parse_into_dataclasses(self, argv: Sequence[str] | None) -> tuple[list[Any], list[str]]:
        """The instances, then a namespace of what no field takes; and the arguments that are unknown.

        Files may stand among the options, and may begin with a dash behind `--`, where nothing is an option.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        end = words.index("--") if "--" in words else len(words)
        namespace, unknown = self.parse_known_intermixed_args(words[:end])
        values, positional = vars(namespace), self._get_positional_actions()
        for action in positional:
            values[action.dest] = [*values[action.dest], *words[end + 1 :]]
        unknown += [] if positional else words[end:]
        filled = [
            kind(**{option.name: values.pop(option.name) for option in fields(kind)}) for kind in self.dataclasses
        ]
        return [*filled, namespace], unknown


def _add_option(group: argparse._ArgumentGroup, option: Field, kind: Any) -> None:
    """Add the option of a field, spelled with underscores and with dashes. `X | None` reads as X does."""
    keywords: dict[str, Any] = dict(option.metadata)
    if option.default is not MISSING:
        keywords["default"] = option.default
    elif option.default_factory is not MISSING:
        keywords["default"] = option.default_factory()
    else:
        keywords["required"] = True
    (kind,) = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
    spellings = sorted({option.name, option.name.replace("_", "-")}, reverse=True)
    if kind is bool:
        group.add_argument(*(f"--{name}" for name in spellings), **({"action": _Flag} | keywords))
        if option.default is True:
            keywords |= {"dest": option.name, "action": "store_false"}
            group.add_argument(f"--no_{spellings[0]}", f"--no-{spellings[-1]}", **keywords)
        return
    if get_args(kind):
        keywords["nargs"], (kind,) = "+", get_args(kind)
    group.add_argument(*(f"--{name}" for name in spellings), type=kind, **keywords)


def parse(
    argv: Sequence[str] | None,
    *dataclasses: type,
    description: str,
    example: str,
    positional: tuple[str, dict[str, Any]] | None = None,
    demo: Mapping[str, Any] | None = None,
    program: str | None = None,
) -> tuple[Any, ...]:
    """Command line -> one instance per dataclass, then (with `positional`) a namespace with the positional arguments.

    Each dataclass becomes a group of the help, titled by its `_argument_group_name`.

    Args:
        argv: the command line without the program's name; None: that of this process.
        *dataclasses: the options, as `arg` declares them.
        description: what the script does.
        example: a command, shown at the end of the help.
        positional: name and argparse keywords of the positional arguments.
        demo: the defaults that `--demo` sets, for a script that has this option.
        program: what the command is called; None: the name of the file that runs.

    Raises:
        SystemExit: with status 2, as argparse does, when the command line cannot be understood.
    """
    parser = Parser(
        *dataclasses,
        prog=program,
        usage=f"%(prog)s {f'[{positional[0]} ...] ' if positional else ''}[options]",
        description=description,
        epilog=f"example: {example}",
        formatter_class=_HelpFormatter,
    )
    if positional:
        parser.add_argument(positional[0], **positional[1])
    if demo and "--demo" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**demo)
    parsed, unknown = parser.parse_into_dataclasses(argv)
    if unknown:
        parser.error(f"{unknown[0]!r} is no option of this script; --help lists them")
    for name, value in (pair for options in parsed for pair in vars(options).items()):
        if value == "" and parser.get_default(name) is None:  # from a variable of the shell that is not set, mostly
            parser.error(f"--{name.replace('_', '-')} is empty: give a value, or leave it out")
    return tuple(parsed if positional else parsed[:-1])
