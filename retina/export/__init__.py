"""Exports that score what the checkpoint scores: SavedModel, ONNX, LiteRT, and the certificate that proves it.

The package is also the verb: `retina.export(RUN)` writes an export. Python binds a package's name to the package as
soon as anything in it is imported, so that a function of that name would not stay one.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from retina.startup import prepare_keras


class _Verb(ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Write an export with its certificate; see `retina.export.exporting.export`."""
        prepare_keras()
        from retina.export.exporting import export

        return export(*arguments, **settings)


sys.modules[__name__].__class__ = _Verb
