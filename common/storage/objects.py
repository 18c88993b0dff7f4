"""File stores: a folder, or the objects below a URL such as gs://bucket/prefix, with this package's errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from gated_backfill.common.errors import BackfillError, HostError, OutsideRoot, UserError, WarehouseUnavailable
from gated_backfill.common.process.private_files import FILE_MODE, make_private_folder
from gated_backfill.common.storage.files import (
    check_writable,
    checked_path,
    checked_path_text,
    create_atomically,
    is_host_error,
    new_file,
    open_regular_file,
    read_regular_file,
    write_atomically,
)

PERMANENT_STATUS = (401, 403)  #: HTTP codes that a retry does not change


class FileStore(Protocol):
    """A tree of files, each whole or absent, named by `/`-separated keys.

    Files outside the root are never read, written or removed, even through a link: `OutsideRoot`.
    """

    @property
    def may_be_remounted(self) -> bool:
        """Whether the same root may be another place later, because a folder is mounted there or no longer."""
        ...

    def location(self, key: str) -> str:
        """Return the path or URL of the file."""
        ...

    def check(self) -> None:
        """Check that files can be written. Raises `HostError`; leaves no file."""
        ...

    def write(self, key: str, data: bytes) -> None: ...

    def new_file(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that is there once the context ends without an error, for a file written in parts."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write the file unless it exists: of several callers, one does."""
        ...

    def read(self, location: str) -> bytes:
        """Read the file at a location below the root. Raises `FileNotFoundError` or `OutsideRoot`."""
        ...

    def open(self, location: str) -> BinaryIO:
        """Open the file at a location below the root for reading. Raises like `read`."""
        ...

    def move(self, location: str, key: str) -> None:
        """Move the file, if it exists, to a new key, for its owner only. Raises `OutsideRoot` as the others do."""
        ...

    def names(self, folder: str) -> list[str]:
        """List the names of the files directly in the folder; none if it does not exist."""
        ...

    def folders(self, folder: str) -> list[str]:
        """List the names of the folders directly in the folder ("" is the root); none if it does not exist."""
        ...

    def remove(self, key: str) -> None:
        """Remove the file, or the folder with its contents, if it exists."""
        ...


def open_file_store(root: Path | str) -> FileStore:
    """Open the folder at a path or the objects below a URL. Raises `UserError` for a URL of an unknown kind."""
    if isinstance(root, str) and "://" in root:
        return ObjectStore(root)
    return FolderStore(Path(root))


def read_bytes(location: str) -> bytes:
    """Read the regular file or object at a path or URL; links are not followed.

    Raises `FileNotFoundError`, `OutsideRoot`, `HostError`, `WarehouseUnavailable`.
    """
    with translate_store_errors(location):
        if "://" not in location:
            return read_regular_file(Path(location))
        return filesystem(location).cat_file(location)


def open_location(location: str) -> BinaryIO:
    """Open the regular file or object at a path or URL for reading. Raises like `read_bytes`."""
    if "://" in location:
        return BytesIO(read_bytes(location))
    with translate_store_errors(location):
        return open_regular_file(location)


def filesystem(url: str) -> Any:
    """Return the fsspec file system of the URL. Raises `UserError` for any kind but gs://."""
    import fsspec

    kind = url.partition("://")[0]
    if kind == "gs" and not urlsplit(url).netloc:
        raise UserError(f"{url} names no bucket: write it as gs://bucket/prefix")
    if kind != "gs":
        raise UserError(
            f"cannot store files at {kind}:// URLs: use a folder shared by all workers, or gs://bucket/prefix"
        )
    if fsspec.get_filesystem_class(kind).__module__.startswith("gcsfs"):
        _check_credentials(url)
    return fsspec.filesystem(kind, use_listings_cache=False)  # other workers write to it as well


def _check_credentials(url: str) -> None:
    """Check that Google credentials exist. Raises `HostError`, where gcsfs would retry for a long time."""
    import google.auth

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # the errors it logs are raised as well
    with translate_store_errors(url):
        google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])


@contextmanager
def translate_store_errors(location: str) -> Generator[None]:
    """Raise `HostError` for errors of this host and its credentials, and `WarehouseUnavailable` for transient ones.

    `FileNotFoundError` and this package's own errors pass unchanged.
    """
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    try:
        yield
    except (BackfillError, FileNotFoundError):
        raise
    except DefaultCredentialsError as exc:
        raise HostError(
            f"{location}: no Google credentials were found: run `gcloud auth application-default login`, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        ) from exc
    except (OSError, GoogleAuthError) as exc:
        if isinstance(exc, OSError) and is_host_error(exc):
            raise HostError(f"{location}: {exc.strerror or exc}") from exc
        if str(exc).startswith("Forbidden"):  # the wording of gcsfs
            raise HostError(f"{location}: {exc}") from exc
        raise WarehouseUnavailable(f"{location}: {getattr(exc, 'strerror', None) or exc}") from exc
    except ValueError as exc:
        if not str(exc).startswith("Bad Request"):
            raise
        raise HostError(f"{location}: {exc}") from exc
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] not in ("gcsfs", "aiohttp"):
            raise
        if getattr(exc, "code", getattr(exc, "status", None)) in PERMANENT_STATUS:
            raise HostError(f"{location}: {exc}") from exc
        raise WarehouseUnavailable(f"{location}: {exc}") from exc


class FolderStore:
    """A folder shared by all workers. Readers find every file whole or absent.

    A power cut may damage the files written last; readers detect that by checksum.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = str(root)  # text, as joining `Path`s for every staged file is slow
        self.may_be_remounted = True

    def location(self, key: str) -> str:
        return f"{self._top}/{key}"

    def check(self) -> None:
        check_writable(self.root)

    def write(self, key: str, data: bytes) -> None:
        path = self.location(key)
        with translate_store_errors(path):
            self._check_folder(path)
            write_atomically(path, data, durable=False)  # replaces a link instead of following it

    @contextmanager
    def new_file(self, key: str) -> Generator[BinaryIO]:
        path = self.location(key)
        with translate_store_errors(path):
            self._check_folder(path)
            with new_file(path, durable=False) as file:
                yield file

    def create(self, key: str, data: bytes) -> None:
        path = self.location(key)
        with translate_store_errors(path):
            self._check_folder(path)
            create_atomically(path, data)

    def read(self, location: str) -> bytes:
        with translate_store_errors(location):
            self._check_folder(location)
            return read_regular_file(location)

    def open(self, location: str) -> BinaryIO:
        self._check_folder(location)
        return open_location(location)

    def move(self, location: str, key: str) -> None:
        with translate_store_errors(location):
            source, target = checked_path(self.root, Path(location)), checked_path(self.root, self.root / key)
            make_private_folder(target.parent)
            if not source.exists():
                return
            if source.stat().st_uid == os.geteuid():  # else, only the folder protects it
                source.chmod(FILE_MODE)
            source.replace(target)

    def names(self, folder: str) -> list[str]:
        path = checked_path(self.root, self.root / folder)
        with translate_store_errors(str(path)):
            return os.listdir(path) if path.is_dir() else []  # noqa: PTH208 - every gate lists all staged files

    def folders(self, folder: str) -> list[str]:
        parent = checked_path(self.root, self.root / folder)
        with translate_store_errors(str(parent)):
            return [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []

    def remove(self, key: str) -> None:
        import shutil

        path = self.location(key)
        self._check_folder(path)
        with translate_store_errors(path):
            try:
                os.unlink(path)  # noqa: PTH108 - removes a link, not its target
            except FileNotFoundError:
                return
            except (IsADirectoryError, PermissionError):  # systems differ in the error for a folder
                if Path(path).is_symlink() or not Path(path).is_dir():
                    raise
                shutil.rmtree(path, ignore_errors=True)

    def _check_folder(self, path: str) -> None:
        """Check that the parent folder of the path lies below the root. Raises `OutsideRoot`."""
        checked_path_text(self._top, path.rpartition("/")[0])


class ObjectStore:
    """The objects below a URL; object stores write atomically."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files: Any = filesystem(self.root)
        self.may_be_remounted = False

    def location(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _checked(self, location: str) -> str:
        """Return the location. Raises `OutsideRoot` unless it is below the root."""
        key = location.removeprefix(f"{self.root}/")
        if key == location or not set(key.split("/")).isdisjoint(("", ".", "..")):
            raise OutsideRoot(f"{location} is not below {self.root}: objects elsewhere are never touched")
        return location

    def read(self, location: str) -> bytes:
        with translate_store_errors(location):
            return self._files.cat_file(self._checked(location))

    def open(self, location: str) -> BinaryIO:
        return BytesIO(self.read(location))

    def check(self) -> None:
        probe = self.location(".backfill-probe")
        with translate_store_errors(self.root):
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)

    def write(self, key: str, data: bytes) -> None:
        self._pipe(key, data, "overwrite")

    @contextmanager
    def new_file(self, key: str) -> Generator[BinaryIO]:
        with NamedTemporaryFile() as file:
            yield file  # pyright: ignore[reportReturnType]
            file.flush()
            with self._translated(key):
                self._files.put_file(file.name, self._checked(self.location(key)))

    def create(self, key: str, data: bytes) -> None:
        self._pipe(key, data, "create")

    def _pipe(self, key: str, data: bytes, mode: str) -> None:
        with self._translated(key), suppress(FileExistsError):  # only in the mode `create`
            self._files.pipe_file(self._checked(self.location(key)), data, mode=mode)

    @contextmanager
    def _translated(self, key: str) -> Generator[None]:
        """Translate the errors of writing the object."""
        with translate_store_errors(self.location(key)):
            try:
                yield
            except FileNotFoundError as exc:
                raise HostError(f"{self.root}: there is no such bucket") from exc

    def move(self, location: str, key: str) -> None:
        with translate_store_errors(location), suppress(FileNotFoundError):  # moved by an earlier call
            self._files.cp_file(self._checked(location), self._checked(self.location(key)))
            self._files.rm_file(location)

    def names(self, folder: str) -> list[str]:
        with translate_store_errors(self.location(folder)):
            try:
                paths = self._files.ls(self.location(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return [path.rpartition("/")[2] for path in paths]

    def folders(self, folder: str) -> list[str]:
        url = self.location(folder) if folder else self.root
        with translate_store_errors(url):
            try:
                entries = self._files.ls(url, detail=True, refresh=True)
            except FileNotFoundError:
                return []
        paths = (str(entry["name"]) for entry in entries if entry["type"] == "directory")
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def remove(self, key: str) -> None:
        with translate_store_errors(self.location(key)), suppress(FileNotFoundError):
            self._files.rm(self._checked(self.location(key)), recursive=True)
