"""The URL of a warehouse, and the properties of the warehouse that follow from it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from gated_backfill.common.model.publication import OWN_DATASET

FOLDER_SCHEME = "local:"


class WarehouseUrl(str):
    """`local:DIR`, a folder of Parquet files, or `bigquery://PROJECT?...`."""

    __slots__ = ()

    @classmethod
    def of_folder(cls, folder: Path) -> WarehouseUrl:
        return cls(f"{FOLDER_SCHEME}{folder.absolute()}")

    @property
    def folder(self) -> Path | None:
        """The folder with the tables' files; None for a service."""
        path = self.removeprefix(FOLDER_SCHEME)
        return Path(path) if path and path != self else None

    @property
    def own_dataset(self) -> str:
        """The dataset of the tool's own tables."""
        if self.folder is not None:
            return OWN_DATASET
        return parse_qs(urlsplit(self).query).get("dataset", [OWN_DATASET])[-1]

    @property
    def is_emulator(self) -> bool:
        """Whether the service is an emulator, so that its tables may be created and deleted freely."""
        return "endpoint=" in self

    @property
    def runs_jobs(self) -> bool:
        """Whether queries and publications are jobs of a service, each of which may take `warehouse_job_seconds`."""
        return self.folder is None

    @property
    def has_implicit_tables(self) -> bool:
        """Whether writing its first partition creates a table."""
        return self.folder is not None
