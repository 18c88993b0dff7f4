"""The side that plans, launches and reports; it sends tasks by name."""
