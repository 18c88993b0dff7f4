"""Jobs of the dbt project in the folder `shop`, and of the same project as it is compiled for BigQuery.

The manifests are generated, by dbt-core 1.10.23 with dbt-duckdb 1.11.1 and dbt-bigquery 1.12.1 (against the emulator):
`dbt compile --full-refresh`, with a profile of the database `warehouse` or the project `shop-prod`, and the schema
`marts`. Only their sections `metadata`, `nodes` and `sources` are kept.
"""

from dataclasses import replace

from gated_backfill import Job
from gated_backfill.dbt import jobs_of_project

JOBS = jobs_of_project("shop")
GOOGLE_JOBS = jobs_of_project("shop_bigquery.json")


def under_other_name(job: Job) -> Job:
    """The job with a name and a target of its own."""
    return replace(job, name=f"{job.name}_google", target=replace(job.target, table=f"{job.target.table}_google"))


GOOGLE_REVENUE = under_other_name(GOOGLE_JOBS.daily_revenue)
GOOGLE_MARGIN = under_other_name(GOOGLE_JOBS.daily_margin)
