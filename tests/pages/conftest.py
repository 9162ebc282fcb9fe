"""The configuration of the studies of `tests/ablation`, whose page is tested here."""

from tests.ablation.conftest import base

__all__ = ["base"]
