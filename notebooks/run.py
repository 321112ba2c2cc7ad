"""Runs the notebooks and keeps their outputs.

python notebooks/run.py [--small] [--directory=DIR] [--output=DIR] [NAME ...]
"""

import argparse
import pathlib
import tempfile

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks; all by default")
    parser.add_argument("--small", action="store_true", help="set SMALL = True where there is one")
    parser.add_argument("--directory", help="where their cells run; by default a temporary one")
    parser.add_argument("--output", default=HERE, type=pathlib.Path, help="where they are written")
    args = parser.parse_args()
    for name in args.names or sorted(path.stem for path in HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as temporary:
            notebook = execute(HERE / f"{name}.ipynb", args.directory or temporary, args.small)
        nbformat.write(notebook, args.output / f"{name}.ipynb")


def execute(path: pathlib.Path, directory: str, small: bool) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, run in `directory`; raises a cell's error."""
    notebook = nbformat.read(path, as_version=4)
    if small:
        for cell in notebook.cells:
            cell.source = cell.source.replace("SMALL = False", "SMALL = True")
    # Times would make every execution another file.
    client = NotebookClient(notebook, timeout=None, startup_timeout=300, record_timing=False)
    return client.execute(cwd=directory)


if __name__ == "__main__":
    main()
