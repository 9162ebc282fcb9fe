"""TensorFlow's chatter at its import, by the level that the user has set; and what Keras knows after imports."""

import gc
import subprocess
import sys

import pytest

from retina.startup import _is_chatter, garbage_left_alone

LINES = {
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR": "123",
    b"I0000 00:00:1795984849.980567   11552 cudart_stub.cc:31] Could not find cuda drivers": "123",
    b"W0000 00:00:1795984849.980567   11552 a.cc:31] Slow": "23",
    b"E0000 00:00:1795984849.980567   11552 cuda_platform.cc:52] failed call to cuInit": "",
    b"Traceback (most recent call last):": "",
}


@pytest.mark.parametrize("line", LINES)
def test_lines_below_the_level_are_chatter(line):
    assert "".join(level for level in "123" if _is_chatter(line, level)) == LINES[line]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_left_alone_inside_the_context_and_looked_for_as_before_after_it(enabled):
    inside = []

    @garbage_left_alone("large")
    def fail():
        inside.append(gc.isenabled())
        raise ImportError

    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError):
            fail()
        assert (inside, gc.isenabled()) == ([False], enabled)
    finally:
        gc.enable()


def test_what_was_made_inside_the_context_is_old():
    code = (
        "import gc; from retina.startup import garbage_left_alone\n"
        "with garbage_left_alone('large'): made = []\n"
        "print(any(old is made for old in gc.get_objects(generation=2)), gc.get_freeze_count())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True 0\n"


def test_of_what_is_imported_already_nothing_changes():
    before = gc.isenabled()
    with garbage_left_alone("gc"):
        assert gc.isenabled() == before


@pytest.mark.parametrize(
    ("imports", "classes"),
    [
        ("import keras, retina", ["Detector", "CocoMetrics", "SigmoidFocal", "Centers", "AdamW"]),
        ("import retina, keras; retina.Detector", ["Detector", "CocoMetrics"]),
    ],
)
def test_keras_files_can_be_loaded_after(imports, classes):
    program = f"{imports}; print([n for n in {classes} if not keras.saving.get_registered_object('retina>' + n)])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
