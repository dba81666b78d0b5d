"""The tree keeps to its own rules: names, sizes, mirrored tests, documented doors."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "core"}
LONGEST_FUNCTION = 60

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    """Yield the public functions, classes and methods of a body."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_module_says_what_it_is(syntax: ast.Module):
    assert ast.get_docstring(syntax)


def test_everything_public_is_documented(syntax: ast.Module):
    assert [node.name for node in public(syntax.body) if not ast.get_docstring(node)] == []


def test_docstrings_begin_with_a_sentence(syntax: ast.Module):
    firsts = {node.name: (ast.get_docstring(node) or "x.").splitlines()[0] for node in public(syntax.body)}
    assert [name for name, line in firsts.items() if not re.search(r"[.:]$", line) or "_description_" in line] == []


def test_functions_fit_on_a_screen(syntax: ast.Module):
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(syntax)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_module_draws_from_no_global_generator(module: Path):
    text = module.read_text(encoding="utf-8")
    assert re.findall(r"\b(?:np|numpy)\.random\.(?:rand\w*|seed|normal|choice|permutation|shuffle)\(", text) == []
    assert re.findall(r"\btorch\.manual_seed\(|\brandom\.(?:seed|random|shuffle|choice)\(", text) == []


def test_module_draws_in_a_dtype_of_its_own(syntax: ast.Module):
    # or the same seed would draw other numbers where torch's default dtype is another
    calls = [node for node in ast.walk(syntax) if isinstance(node, ast.Call)]
    drawing = [call for call in calls if re.fullmatch(r"torch\.(rand|randn|normal)", ast.unparse(call.func))]
    assert [call.lineno for call in drawing if "dtype" not in {word.arg for word in call.keywords}] == []


def test_module_names_no_place_of_one_machine(module: Path):
    assert re.findall(r"(?<![\w.])/(?:tmp|work|root|home)/\w+", module.read_text(encoding="utf-8")) == []


def test_module_opens_tensorboard_only_as_the_journal(module: Path, syntax: ast.Module):
    # import contracts know no module inside a library, and this one is in torch
    imports = [node for node in ast.walk(syntax) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or alias.name for node in imports for alias in node.names]
    is_door = module.parts[-2:] == ("training", "journal.py")
    assert any("tensorboard" in name for name in names) == is_door


def test_every_required_library_is_imported(project_root: Path):
    setup = configparser.ConfigParser()
    setup.read(project_root / "setup.cfg")
    required = {re.split("[>=<]", line)[0] for line in setup["options"]["install_requires"].split()}
    imported: set[str] = set()
    for path in (project_root / "proteinlm").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    distributions = packages_distributions()
    provided = {name.lower() for module in imported for name in distributions.get(module, [])}
    assert required - provided == set()


def test_no_file_has_a_name_that_says_nothing(project_root: Path):
    folders = [project_root / name for name in ("proteinlm", "tests", "benchmarks", "pipelines", "docs")]
    paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    assert [str(path) for path in paths if path.stem in NO_NAMES] == []


def test_folders_of_tests_mirror_the_package(project_root: Path):
    own = {"house", "data"}
    folders = {path.parent.relative_to(project_root / "tests") for path in (project_root / "tests").rglob("test_*.py")}
    rooms = {folder for folder in folders if folder.parts and folder.parts[0] not in own}
    assert [str(folder) for folder in rooms if not (project_root / "proteinlm" / folder).is_dir()] == []


def test_every_room_has_tests(project_root: Path):
    rooms = [path.parent for path in (project_root / "proteinlm").glob("*/__init__.py")]
    assert [room.name for room in rooms if not any((project_root / "tests" / room.name).rglob("test_*.py"))] == []
