"""The URL of a warehouse, and what it says about the warehouse without opening it."""

from __future__ import annotations

from pathlib import Path

FOLDER_SCHEME = "local:"


class WarehouseUrl(str):
    """`local:DIR`, a folder of Parquet files, or `bigquery://PROJECT?...`."""

    __slots__ = ()

    @classmethod
    def of_folder(cls, folder: Path) -> WarehouseUrl:
        return cls(f"{FOLDER_SCHEME}{folder.absolute()}")

    @property
    def folder(self) -> Path | None:
        """The folder with the tables' files; None for a warehouse behind a service."""
        path = self.removeprefix(FOLDER_SCHEME)
        return Path(path) if path and path != self else None

    @property
    def is_emulator(self) -> bool:
        """Whether the service is an emulator, so that its tables may be made and thrown away freely."""
        return "endpoint=" in self

    @property
    def runs_jobs(self) -> bool:
        """Whether queries and publications are jobs of a service, each of which may take `warehouse_job_seconds`."""
        return self.folder is None

    @property
    def has_implicit_tables(self) -> bool:
        """Whether a table exists from its first partition on, without being created."""
        return self.folder is not None
