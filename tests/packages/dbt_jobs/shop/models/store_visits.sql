{{ config(materialized='incremental') }}

select store, sold_on, count(*) as visits
from {{ source('shop', 'till_sales') }}
group by store, sold_on
