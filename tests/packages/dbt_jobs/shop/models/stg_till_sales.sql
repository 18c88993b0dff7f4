{{ config(materialized='ephemeral') }}

select store, sold_on, amount
from {{ source('shop', 'till_sales') }}
where amount is not null
