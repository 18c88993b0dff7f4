"""Models of dbt projects as jobs: what a job's module imports from `gated_backfill.dbt`."""

from gated_backfill.common.dbt.jobs import DbtJobs, jobs_of_project

__all__ = ["DbtJobs", "jobs_of_project"]
