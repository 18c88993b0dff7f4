"""Commands about tables: create, load, audit and clean them, and list the jobs that build them."""
