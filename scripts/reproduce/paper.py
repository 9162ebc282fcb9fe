#!/usr/bin/env python
"""Typeset the table and the figures of a study as a paper would: `table.tex` must compile, and can be looked at.

    .venv/bin/python scripts/reproduce/paper.py runs/ablation --out paper.pdf

Needs pdflatex with booktabs (Debian: texlive-latex-recommended). Exits with 1 where it does not compile.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[margin=2cm]{geometry}
\begin{document}
\input{table.tex}
%s
\end{document}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study with its outputs")
    parser.add_argument("--out", type=Path, default=Path("paper.pdf"), help="(%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(arguments.study / "table.tex", folder)
        figures = sorted(arguments.study.glob("*.pdf"))
        for figure in figures:
            shutil.copy(figure, folder)
        shown = "\n\n".join(rf"\includegraphics[width=\linewidth]{{{figure.name}}}" for figure in figures)
        (folder / "paper.tex").write_text(DOCUMENT % shown)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode:
            print(done.stdout[-2000:], file=sys.stderr)
            return 1
        shutil.copy(folder / "paper.pdf", arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
