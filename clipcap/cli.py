"""The command line that all scripts share: dataclasses in, one clear sentence out when something is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field
from typing import Any

from clipcap.errors import UserError


def arg(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field with its help text; `metadata` takes argparse's keywords (choices, metavar, nargs, ...)."""
    metadata["help"] = help
    if default is False:
        metadata.setdefault("action", _Flag)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _Flag(argparse.Action):
    """True when given, and never takes the next word for its value: `--demo photos/` names a folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"nargs": 0, "type": None}))

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling per option and its default, so that a script's help fits on two screens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        option = action.option_strings[-1].replace("_", "-")
        return option if action.nargs in (0, "?") else f"{option} {self._format_args(action, self._metavar(action))}"

    def _metavar(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind, action.option_strings[-1].lstrip("-").upper().replace("_", "-"))

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, argparse.SUPPRESS, False, "") and not isinstance(action.default, list)
        return (
            f"{action.help} (default: %(default)s)" if shown and "default" not in (action.help or "") else action.help
        )


def parse(
    argv: Sequence[str] | None,
    *dataclasses: type,
    description: str,
    example: str,
    positional: tuple[str, dict] | None = None,
) -> tuple:
    """Command line -> one instance per dataclass, then (with `positional`) a namespace with the positional arguments.

    Each dataclass becomes a group of the help, titled by its `_argument_group_name`. `--demo`, where a script has it,
    replaces the defaults by those of the demo world.

    Raises:
        SystemExit: with status 2 when the command line cannot be read, as argparse does.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        list(dataclasses),
        usage=f"%(prog)s {f'[{positional[0]} ...] ' if positional else ''}[options]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
    )
    if positional:
        parser.add_argument(positional[0], **positional[1])
    if "--demo" in (sys.argv[1:] if argv is None else argv):
        from clipcap.demo import DEFAULTS

        known = {action.dest for action in parser._actions}
        parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in known})
    return parser.parse_args_into_dataclasses(args=list(argv) if argv is not None else None, look_for_args_file=False)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a script's `main`; its return value is the exit status, a `UserError` is one sentence and status 2."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
