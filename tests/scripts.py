"""Scripts as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load_script(name: str) -> ModuleType:
    """Return a Python script, such as `reproduce/decoding`, as a module; it finds its neighbours in scripts/."""
    path = SCRIPTS / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    sys.modules[module.__name__] = module  # dataclasses and named tuples look it up
    specification.loader.exec_module(module)
    return module
