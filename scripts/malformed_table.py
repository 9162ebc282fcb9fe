#!/usr/bin/env python
"""Print the table of malformed inputs as Markdown: kind, command, exit code and message, as the commands give them.

    scripts/malformed_table.py

The kinds are those that tests/end_to_end/test_malformed.py asserts. Paths are shown relative to a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.end_to_end.test_malformed import run
from tests.malformed import KINDS


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| input | command | exit code | message |\n|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            done = run(kind, Path(folder))
            message = done.message.replace(f"{folder}/", "").replace(folder, ".").replace("|", "\\|")
        print(f"| {kind.name} | `retina {done.command}` | {done.code} | {message} |", flush=True)


if __name__ == "__main__":
    main()
