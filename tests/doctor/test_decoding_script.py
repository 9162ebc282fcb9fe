"""What scripts/reproduce/decoding concludes from its figures."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce" / "decoding"


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("reproduce_decoding", str(SCRIPT))
    module = module_from_spec(spec_from_loader("reproduce_decoding", loader))
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("mean", "error", "told", "good"),
    [
        (0.0, None, "can't tell", False),
        (-0.05, None, "can't tell", False),
        (-0.02, 0.02, "can't tell", False),
        (0.001, 0.02, "can't tell", False),
        (-0.003, 0.0, "WORSE", False),
        (-0.05, 0.02, "WORSE", False),
        (0.0, 0.0009, "not worse", True),
        (0.05, 0.02, "not worse", True),
    ],
)
def test_verdict(script, mean, error, told, good):
    said, sound = script.verdict(mean, error, 3)
    assert told in said and sound is good


def test_the_seeds_that_would_tell(script):
    # Two errors of 0.02 must shrink 20-fold, so 400 times as many seeds.
    assert "about 1200 seeds" in script.verdict(-0.02, 0.02, 3)[0]


def test_difference(script):
    found = [{"auto": {"AP": 0.5 + step}, "full": {"AP": 0.5}} for step in (-0.01, 0.03)]
    assert script.difference(found, "AP") == pytest.approx((0.01, 0.02))
    assert script.difference(found[:1], "AP") == (pytest.approx(-0.01), None)
