"""The house's rules: cheap imports, imports one way, no function over 60 lines."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import inpaint_encode

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("inpaint_encode", "jobs") for path in (ROOT / folder).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def function_lengths() -> dict[str, int]:
    """Lines of every function and method, docstring included, decorators not."""
    return {
        f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import json, sys, time; start = time.process_time(); import inpaint_encode; "
        "print(json.dumps([time.process_time() - start, list(sys.modules)]))"
    )
    seconds, modules = json.loads(run_python(code))
    assert not {"ray", "torch", "diffusers", "pyarrow"} & set(modules)
    assert seconds < 0.5


def test_every_public_name_exists():
    assert [name for name in inpaint_encode.__all__ if not hasattr(inpaint_encode, name)] == []


def test_imports_go_one_way():
    """The contracts are in pyproject.toml, under tool.importlinter."""
    run_python("from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])")


def test_no_function_is_over_60_lines():
    assert {name: lines for name, lines in function_lengths().items() if lines > 60} == {}


def test_no_file_is_a_drawer_for_everything():
    assert [file for file in TREES if Path(file).name in {"utils.py", "util.py", "helpers.py"}] == []


def test_no_wildcard_imports():
    stars = [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert stars == []
