"""A study's own process only starts others and compares their figures: it has no use for a framework."""

import subprocess
import sys

import pytest

HEAVY = ("keras", "tensorflow", "jax", "torch", "matplotlib", "jinja2")


@pytest.mark.parametrize(
    "module",
    ["plan", "execute", "results", "tables", "outputs", "plots", "loss_distribution"],
)
def test_ablation_imports_no_framework(module: str) -> None:
    code = f"import sys, retina.ablation.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_of_a_study_imports_no_framework() -> None:
    code = f"import sys, retina.pages.study; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
