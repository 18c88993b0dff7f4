"""What producer and workers share; imports neither of them."""
