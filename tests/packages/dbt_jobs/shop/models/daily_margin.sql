{{ config(
    materialized='incremental',
    unique_key=['store', 'sold_on'],
    partition_by={'field': 'sold_on', 'data_type': 'date'} if target.type == 'bigquery' else none,
    event_time='sold_on',
) }}

with daily_costs as (

    select * from {{ source('shop', 'daily_costs') }}

),

ranked as (

    select
        store,
        sold_on,
        revenue,
        rank() over (partition by sold_on order by revenue desc, store) as place
    from {{ ref('daily_revenue') }}

)

select
    ranked.store,
    ranked.sold_on,
    cast({{ dbt.date_trunc('month', 'ranked.sold_on') }} as date) as sold_in,
    ranked.revenue - coalesce(daily_costs.cost, 0) as margin,
    ranked.place,
    case when ranked.place = 1 then 'the best' end as note
from ranked
left join daily_costs
    on daily_costs.store = ranked.store and daily_costs.sold_on = ranked.sold_on
{% if is_incremental() %}
where ranked.sold_on > (select max(sold_on) from {{ this }})
{% endif %}
