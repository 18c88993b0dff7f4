"""The side that builds dates and gates them."""
