"""The fixtures of these tests."""

from tests.lab import lab as lab
