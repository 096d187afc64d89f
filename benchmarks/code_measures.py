"""Measures the code of the five packages: sizes of functions and files, types, docstrings, comments, parameters.

    python benchmarks/code_measures.py            # a Markdown table
    python benchmarks/code_measures.py DIR …      # of other packages, for comparison

A function counts from its `def` to its last line. Typed: every parameter and the result have an annotation. Public: no
name on its way begins with an underscore.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")
LONG_FILE, MANY_PARAMETERS = 400, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Measures:
    """Counts over a package."""

    lines: int = 0
    comments: int = 0
    files: int = 0
    long_files: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    typed: int = 0
    public: int = 0
    documented: int = 0
    crowded: list[str] = field(default_factory=list)  # functions with many parameters

    def add_file(self, file: Path) -> None:
        """Counts one source file."""
        text = file.read_text(encoding="utf-8")
        count = len(text.splitlines())
        self.files += 1
        self.lines += count
        if count > LONG_FILE:
            self.long_files.append(f"{file.name} {count}")
        with file.open("rb") as opened:
            tokens = list(tokenize.tokenize(opened.readline))
        self.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        self._visit(ast.parse(text), public=True)

    def _visit(self, node: ast.AST, public: bool) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            own = public and not (named and child.name.startswith("_"))
            if isinstance(child, Function | ast.ClassDef) and own:
                self.public += 1
                self.documented += ast.get_docstring(child) is not None
            if isinstance(child, Function):
                self._add_function(child)
            self._visit(child, own and not isinstance(child, Function))

    def _add_function(self, node: Function) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments = [one for one in arguments if one.arg not in ("self", "cls")]
        self.lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
        self.typed += all(one.annotation for one in arguments) and node.returns is not None
        if len(arguments) > MANY_PARAMETERS:
            self.crowded.append(f"{node.name} {len(arguments)}")

    def row(self, name: str) -> str:
        """One line of the table."""
        tenths = quantiles(self.lengths, n=10)
        sizes = f"{tenths[4]:.0f} / {tenths[8]:.0f} / {max(self.lengths)}"
        return (
            f"| {name} | {self.lines:,} | {self.files} | {len(self.lengths):,} | {sizes} "
            f"| {self.typed / len(self.lengths):.0%} | {self.documented / max(1, self.public):.0%} "
            f"| {self.comments / self.lines:.1%} | {len(self.long_files)} | {len(self.crowded)} |"
        )


def measure(folders: list[Path]) -> Measures:
    """Of all Python files below these folders."""
    found = Measures()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            found.add_file(file)
    return found


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]] or [ROOT / name for name in PACKAGES]
    sizes = "lines p50 / p90 / max"
    large = f"files > {LONG_FILE} | functions > {MANY_PARAMETERS} parameters"
    print(f"| package | lines | files | functions | {sizes} | typed | public docstrings | comments / lines | {large} |")
    print("|" + "---|" * 10)
    whole = measure(folders)
    print(whole.row("all"))
    for folder in folders:
        print(measure([folder]).row(folder.name))
    print("\nlong files:", ", ".join(whole.long_files) or "none")
    print("many parameters:", ", ".join(whole.crowded) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
