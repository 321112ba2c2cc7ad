"""Imports run one way, and no chain of them is long."""

import ast
import functools
import pathlib

import pytest

import iamcl2r_jax

ROOT = pathlib.Path(iamcl2r_jax.__file__).parent
FILES = {
    ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in ROOT.rglob("*.py")
}


def imported(nodes):
    """The package's modules that import statements among some nodes name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in FILES)


@functools.cache
def imports(module: str, *, inside: bool = False) -> frozenset[str]:
    """What a module imports at its top level, or with `inside` anywhere."""
    tree = ast.parse(FILES[module].read_text())
    return frozenset(imported(ast.walk(tree) if inside else tree.body)) - {module}


@functools.cache
def depth(module: str) -> int:
    """Modules in the longest chain of imports that starts with this one."""
    return 1 + max(map(depth, imports(module)), default=0)


def subpackage(module: str) -> str:
    """The name below the package; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def test_no_two_subpackages_import_each_other():
    edges = {(subpackage(m), subpackage(other)) for m in FILES for other in imports(m)}
    assert ("reports", "training") in edges
    assert [(a, b) for a, b in edges if a < b and (b, a) in edges] == []


def test_training_calls_reports_only_to_draw():
    upwards = {
        (module, other)
        for module in FILES
        for other in imports(module, inside=True)
        if subpackage(module) == "training" and subpackage(other) == "reports"
    }
    assert upwards == {
        ("iamcl2r_jax.training.runs", "iamcl2r_jax.reports.page"),
        ("iamcl2r_jax.training.tracking", "iamcl2r_jax.reports.colours"),
    }


@pytest.mark.parametrize(
    ("part", "most"), [("config", 7), ("evaluation", 8), ("training", 9), ("reports", 9)]
)
def test_chains_of_imports_are_short(part, most):
    depths = {module: depth(module) for module in FILES if subpackage(module) == part}
    assert max(depths.values()) <= most, depths
