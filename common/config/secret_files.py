"""Secrets in files, as Docker and Kubernetes provide them: `BACKFILL_LEDGER_FILE` in place of `BACKFILL_LEDGER`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gated_backfill.common.errors import UserError

SUFFIX = "_FILE"
MAX_BYTES = 65_536  #: of a file; a larger one was named by mistake


def read_secret_files(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the content of the files that variables name, by the name of the setting, such as `ledger`.

    An empty variable counts as unset, as in a compose file. Raises `UserError`, without anything of variables or files,
    for a file that cannot be used, and if the setting's own variable is set as well.
    """
    values = {name.upper(): value for name, value in environment.items()}
    secrets: dict[str, str] = {}
    for name in names:
        file_variable = secret_file_variable(name)
        file, variable = values.get(file_variable), file_variable.removesuffix(SUFFIX)
        if not file:
            continue
        if values.get(variable):
            raise UserError(f"{variable} and {file_variable} are both set: unset one of them")
        secrets[name] = _read(file, file_variable)
    return secrets


def secret_file_variable(name: str) -> str:
    """Return the variable that names a file with the setting's secret."""
    return f"BACKFILL_{name.upper()}{SUFFIX}"


def _read(file: str, variable: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode().strip()
    except OSError as exc:  # the path is not shown: it may be the secret itself, set by mistake
        raise UserError(f"{variable} names a file that can't be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UserError(f"{variable} names a file that is not UTF-8 text") from exc
    if not text or len(content) > MAX_BYTES or "\0" in text:
        problem = "is empty" if not text else "holds no secret: it is too large, or not text"
        raise UserError(f"{variable} names a file that {problem}")
    return text
