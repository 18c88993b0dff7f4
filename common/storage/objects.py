"""Files by a path or by a URL such as gs://bucket/prefix, with our errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from gated_backfill.common.errors import BackfillError, NotAllowed, OutsideRoot, UserError, WarehouseUnavailable
from gated_backfill.common.storage.files import (
    check_writable,
    checked_path,
    checked_path_text,
    read_regular_file,
    write_atomically,
)

REFUSED = (401, 403)  #: HTTP codes that no retry mends


class FileStore(Protocol):
    """A tree of files, each whole or absent, named by `/`-separated keys.

    Nothing but what lies below the root is read, written or removed, whatever links lie there: `OutsideRoot`.
    """

    def location(self, key: str) -> str:
        """Where the file is, in the form in which it is handed to others."""
        ...

    def check(self) -> None:
        """Raises `NotAllowed` when nothing could be written. Changes nothing that stays."""
        ...

    def write(self, key: str, data: bytes) -> None: ...

    def read(self, location: str) -> bytes:
        """What is at a location below the root. Raises `FileNotFoundError`, and `OutsideRoot` for any other place."""
        ...

    def move(self, location: str, key: str) -> None:
        """Move the file, if it is there, to its new key. Raises `OutsideRoot` for one that is not below the root."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of the files directly in the folder; none if there is no such folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in the folder, or at the top for ""; none if there is no such folder."""
        ...

    def remove(self, key: str) -> None:
        """Remove the file or the folder with all that is in it, if it is there."""
        ...


def open_file_store(root: Path | str) -> FileStore:
    """The folder at a path, or the objects below a URL. Raises `UserError` for a URL of an unknown kind."""
    if isinstance(root, str) and "://" in root:
        return ObjectStore(root)
    return FolderStore(Path(root))


def read_bytes(location: str) -> bytes:
    """What is at a path or a URL: of a plain file, not of what a link leads to.

    Raises `FileNotFoundError`, `OutsideRoot`, `NotAllowed`, `WarehouseUnavailable`.
    """
    with translate_store_errors(location):
        if "://" not in location:
            return read_regular_file(Path(location))
        return filesystem(location).cat_file(location)


def filesystem(url: str) -> Any:
    """The file system that serves the URL. Raises `UserError` for any kind but gs://."""
    import fsspec

    kind = url.partition("://")[0]
    if kind == "gs" and not urlsplit(url).netloc:
        raise UserError(f"{url} names no bucket: write it as gs://bucket/prefix")
    if kind != "gs":
        raise UserError(f"files can't be kept at {kind}:// URLs: give a folder that all workers share, or gs://...")
    if fsspec.get_filesystem_class(kind).__module__.startswith("gcsfs"):
        _require_credentials(url)
    return fsspec.filesystem(kind, use_listings_cache=False)  # other workers write beside this one


def _require_credentials(url: str) -> None:
    """Raises `NotAllowed` without Google credentials: the file system would try at length without them."""
    import google.auth

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs on the way, it raises in the end
    with translate_store_errors(url):
        google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])


@contextmanager
def translate_store_errors(what: str) -> Generator[None]:
    """A missing file stays a `FileNotFoundError`; what may not be touched and what fails in passing become ours."""
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    try:
        yield
    except (BackfillError, FileNotFoundError):
        raise
    except DefaultCredentialsError as exc:
        raise NotAllowed(
            f"{what}: no Google credentials were found: run `gcloud auth application-default login`, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        ) from exc
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise NotAllowed(f"{what}: {exc.strerror or exc}") from exc
    except (OSError, GoogleAuthError) as exc:
        if str(exc).startswith("Forbidden"):  # as gcsfs says it
            raise NotAllowed(f"{what}: {exc}") from exc
        raise WarehouseUnavailable(f"{what}: {getattr(exc, 'strerror', None) or exc}") from exc
    except ValueError as exc:
        if not str(exc).startswith("Bad Request"):
            raise
        raise NotAllowed(f"{what}: {exc}") from exc
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] not in ("gcsfs", "aiohttp"):
            raise
        if getattr(exc, "code", getattr(exc, "status", None)) in REFUSED:
            raise NotAllowed(f"{what}: {exc}") from exc
        raise WarehouseUnavailable(f"{what}: {exc}") from exc


class FolderStore:
    """A folder that all workers share. A reader finds every file whole or absent.

    A power cut may damage what was written last: who reads it back has its checksum.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = str(root)  # a path is made for every file that is staged or read: not of a `Path`

    def location(self, key: str) -> str:
        return f"{self._top}/{key}"

    def check(self) -> None:
        check_writable(self.root)

    def write(self, key: str, data: bytes) -> None:
        place = self.location(key)
        with translate_store_errors(place):
            self._check_folder(place)
            write_atomically(place, data, durable=False)  # which puts a file in the place of a link

    def read(self, location: str) -> bytes:
        with translate_store_errors(location):
            self._check_folder(location)
            return read_regular_file(location)

    def move(self, location: str, key: str) -> None:
        with translate_store_errors(location):
            source, kept = checked_path(self.root, Path(location)), checked_path(self.root, self.root / key)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if source.exists():
                source.replace(kept)

    def names(self, folder: str) -> list[str]:
        place = checked_path(self.root, self.root / folder)
        return os.listdir(place) if place.is_dir() else []  # noqa: PTH208 - asked by every gate, of all that is staged

    def folders(self, folder: str) -> list[str]:
        place = checked_path(self.root, self.root / folder)
        return [path.name for path in place.iterdir() if path.is_dir()] if place.is_dir() else []

    def remove(self, key: str) -> None:
        import shutil

        place = self.location(key)
        self._check_folder(place)
        try:
            os.unlink(place)  # noqa: PTH108 - of a link, itself is removed, never what it leads to
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # as systems differ in saying that it is a folder
            if Path(place).is_symlink() or not Path(place).is_dir():
                raise
            shutil.rmtree(place, ignore_errors=True)

    def _check_folder(self, place: str) -> None:
        """Raises `OutsideRoot` unless the folder in which the place is lies below the root."""
        checked_path_text(self._top, place.rpartition("/")[0])


class ObjectStore:
    """The objects below a URL; the store itself shows each whole or not at all."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files: Any = filesystem(self.root)

    def location(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _own(self, location: str) -> str:
        """The location. Raises `OutsideRoot` unless it is below the root."""
        own = location.removeprefix(f"{self.root}/")
        if own == location or not set(own.split("/")).isdisjoint(("", ".", "..")):
            raise OutsideRoot(f"{location} is not below {self.root}: nothing outside is read, written or removed")
        return location

    def read(self, location: str) -> bytes:
        with translate_store_errors(location):
            return self._files.cat_file(self._own(location))

    def check(self) -> None:
        probe = self.location(".backfill-probe")
        with translate_store_errors(self.root):
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)

    def write(self, key: str, data: bytes) -> None:
        with translate_store_errors(self.location(key)):
            try:
                self._files.pipe_file(self._own(self.location(key)), data)
            except FileNotFoundError as exc:
                raise NotAllowed(f"{self.root}: there is no such bucket") from exc

    def move(self, location: str, key: str) -> None:
        with translate_store_errors(location):
            try:
                self._files.cp_file(self._own(location), self._own(self.location(key)))
                self._files.rm_file(location)
            except FileNotFoundError:
                return  # it was moved already

    def names(self, folder: str) -> list[str]:
        with translate_store_errors(self.location(folder)):
            try:
                found = self._files.ls(self.location(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return [name.rpartition("/")[2] for name in found]

    def folders(self, folder: str) -> list[str]:
        place = self.location(folder) if folder else self.root
        with translate_store_errors(place):
            try:
                found = self._files.ls(place, detail=True, refresh=True)
            except FileNotFoundError:
                return []
        names = (str(one["name"]) for one in found if one["type"] == "directory")
        return [name.rstrip("/").rpartition("/")[2] for name in names]

    def remove(self, key: str) -> None:
        with translate_store_errors(self.location(key)):
            try:
                self._files.rm(self._own(self.location(key)), recursive=True)
            except FileNotFoundError:
                return
