"""Rules of the code base: the public API, cheap imports, imports one way, no function over 60 lines."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import inpaint_encode

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("inpaint_encode", "jobs") for path in (ROOT / folder).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def function_lengths() -> dict[str, int]:
    """Number of lines of every function and method, with docstring, without decorators."""
    return {
        f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after ``code``."""
    return set(run_python(f"{code}; import sys; print(*sys.modules)").split())


def test_importing_the_package_loads_nothing_heavy():
    assert not {"ray", "torch", "diffusers", "pyarrow", "numpy"} & modules_after("import inpaint_encode")


@pytest.mark.parametrize("name", ["open_latents", "inpaint_input", "RowMetadata", "grow_mask"])
def test_names_for_readers_load_no_package_of_the_job(name):
    job = {"ray", "diffusers", "s3fs", "PIL", "pydantic", "cyclopts", "rich", "jinja2", "safetensors", "simplejpeg"}
    assert job & modules_after(f"from inpaint_encode import {name}") == set()


def test_iter_rows_loads_no_torch():
    assert "torch" not in modules_after("from inpaint_encode import iter_rows")


def test_every_public_name_exists_and_is_typed():
    assert [name for name in inpaint_encode.__all__ if not hasattr(inpaint_encode, name)] == []
    assert {name for name in inpaint_encode.__all__ if not name.startswith("_")} == inpaint_encode._MODULES.keys()
    tree = TREES["inpaint_encode/__init__.py"]
    (typed,) = [node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING"]
    imports = {alias.name: node.module for node in typed.body for alias in node.names}
    assert imports == {name: module for name, (module, *_) in inpaint_encode._MODULES.items()}


def test_every_public_name_is_in_the_package_s_docstring():
    assert [name for name in inpaint_encode._MODULES if name not in inpaint_encode.__doc__] == []


def test_imports_go_one_way():
    """The contracts are in pyproject.toml, under tool.importlinter."""
    run_python("from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])")


def test_no_modules_import_each_other():
    """Not even a package and one of its modules, and not inside functions either."""
    graph = grimp.build_graph("inpaint_encode", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_no_function_is_over_60_lines():
    assert {name: lines for name, lines in function_lengths().items() if lines > 60} == {}


def test_no_module_is_called_utils():
    assert [file for file in TREES if Path(file).name in {"utils.py", "util.py", "helpers.py"}] == []


def test_no_wildcard_imports():
    stars = [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert stars == []
