{{ config(materialized='incremental', unique_key=['store', 'sold_on'], event_time='sold_on') }}

with sales as (

    select * from {{ ref('stg_till_sales') }}

),

final as (

    select store, sold_on, sum(amount) as revenue, count(*) as sales
    from sales
    group by store, sold_on

)

select * from final
{% if is_incremental() %}
where sold_on > (select max(sold_on) from {{ this }})
{% endif %}
