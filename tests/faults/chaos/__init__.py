"""A harness of faults: seeded schedules of what goes wrong, real processes, and what must hold afterwards."""
