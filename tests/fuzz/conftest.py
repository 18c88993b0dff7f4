from tests.fuzz.watching import watched
from tests.lab import lab

__all__ = ["lab", "watched"]
