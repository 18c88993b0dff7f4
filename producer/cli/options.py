"""Options that several commands share, and dataclasses of options as command parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

JobName = Annotated[str | None, typer.Option("--job", help="The job; `backfill jobs` lists them.")]
SingleJob = Annotated[str | None, typer.Option("--job", help="One job only.  [default: all jobs]")]
StartDate = Annotated[str | None, typer.Option("--start-date", help="First date, YYYY-MM-DD, included.")]
EndDate = Annotated[str | None, typer.Option("--end-date", help="Last date, YYYY-MM-DD, included.")]
Dates = Annotated[
    list[str] | None,
    typer.Option("--dates", help="Dates instead of a range: 2023-02-23,2023-03-01..2023-03-05. May be repeated."),
]
Reason = Annotated[str | None, typer.Option("--reason", help="The reason; stored with the user and the time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run; `backfill status` lists the latest.")]
LatestRunId = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run.  [default: the latest]")]
WindowSize = Annotated[
    int | None,
    typer.Option("--window", min=1, max=5000, help="Dates per window (one chord).  [default: BACKFILL_WINDOW or 100]"),
]


def strip_reason(reason: str | None) -> str | None:
    """The trimmed text of a `--reason` option; None when it is blank."""
    return (reason or "").strip() or None


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make each field of a command's dataclass parameters an option of the command."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in signature(command).parameters.values():
        group = hints[parameter.name]
        if not is_dataclass(group):
            annotated = parameter.replace(annotation=group, kind=Parameter.KEYWORD_ONLY)
            parameters.append(annotated)
            continue
        groups[parameter.name] = group
        options = get_type_hints(group, include_extras=True)
        parameters += [
            Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=options[option.name])
            for option in fields(group)
        ]

    def run_command(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in fields(group)})
        return command(**values)

    run_command.__doc__ = command.__doc__
    run_command.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run_command.__annotations__ = {}
    return run_command
