"""gs:// without Google: buckets that are folders, under the same interface that gcsfs has."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class BucketFolders(DirFileSystem):
    """`gs://bucket/key` is the file `bucket/key` in a folder."""

    protocol = "gs"
    cachable = False
    root = ""

    def __init__(self, **_: Any) -> None:
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=True))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write the object; `create` only if it does not exist, in one step, as Google does."""
        if mode != "create":
            super().pipe_file(path, value)
            return
        file = Path(self._join(path))
        whole = file.with_name(uuid4().hex)
        super().pipe_file(f"{path.rpartition('/')[0]}/{whole.name}", value)
        try:
            file.hardlink_to(whole)
        finally:
            whole.unlink()

    def _join(self, path: Any) -> Any:
        return super()._join(path.removeprefix("gs://") if isinstance(path, str) else path)


def serve_buckets(root: Path) -> None:
    """From now on this process finds gs:// URLs in the folder."""
    BucketFolders.root = str(root)
    fsspec.register_implementation("gs", BucketFolders, clobber=True)


def path_of(location: str) -> Path:
    """Where the file at a path or a gs:// URL really is."""
    if location.startswith("gs://"):
        return Path(BucketFolders.root) / location.removeprefix("gs://")
    return Path(location)
