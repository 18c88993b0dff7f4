select sold_on, max(revenue) as revenue
from {{ ref('daily_revenue') }}
group by sold_on
