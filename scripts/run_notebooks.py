#!/usr/bin/env python
"""Run notebooks from top to bottom in a temporary folder, and store them with their outputs.

    scripts/run_notebooks.py                                     all of notebooks/; some minutes
    scripts/run_notebooks.py notebooks/losses.ipynb

A notebook that fails, or whose file would exceed 1.5 MB, stays as it was; the exit code is 1 then. It needs the extra
`notebooks`. Times, the version of Python, the temporary folder's name and standard error are not stored: warnings of
other packages name paths of the machine there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 1_500_000


def run(path: Path) -> None:
    """Execute the notebook and write it.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: the file would be too large.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    about = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "notebooks" / "data", Path(folder, "data"))
        NotebookClient(notebook, timeout=3600, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = nbformat.from_dict(about)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text = nbformat.writes(notebook).replace(f"{folder}/", "") + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"{path.name}: expected at most {MOST_BYTES:,} bytes, got {len(text.encode()):,}")
    path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted((ROOT / "notebooks").glob("*.ipynb")))
    # The kernel imports this checkout's package, and says nothing of TensorFlow's start.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    failed = False
    for path in parser.parse_args().notebooks:
        start = time.perf_counter()
        try:
            run(path)
        except Exception as error:
            failed = True
            print(f"{path}: {error}", file=sys.stderr)
        else:
            print(f"{path}: {time.perf_counter() - start:.0f} s, {path.stat().st_size:,} bytes", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
