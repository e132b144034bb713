"""The project itself: its lists agree, its rules hold."""

import ast
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import helpers

ROOT = Path(__file__).resolve().parent.parent


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def requirements(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("kind", ("", "-fast"))
def test_the_lock_pins_everything_that_is_asked_for(kind):
    lock = requirements(f"requirements{kind}.txt")
    assert all(re.fullmatch(r"==[^,*]+", str(one.specifier)) for one in lock)
    canonical = lambda name: name.lower().replace("_", "-")  # noqa: E731
    assert {canonical(one.name) for one in requirements(f"requirements{kind}.in")} <= {
        canonical(one.name) for one in lock
    }


def test_conda_environment_is_in_step_with_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert rest == {"pip": ["--requirement requirements.txt"]} and pip == "pip"
    version = tuple(map(int, re.fullmatch(r"python=(\d+)\.(\d+)", python).groups()))
    low, high = re.fullmatch(
        r">=3\.(\d+),<3\.(\d+)", re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    ).groups()
    assert (3, int(low)) <= version < (3, int(high))


def imports(path):
    """The dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


PROGRAMS = {path.stem for path in ROOT.glob("*.py")} - {"helpers"}
OPTIONAL = {"tensorflow", "numba", "llvmlite"}


def test_every_import_is_in_the_requirements():
    names = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "IPython": "ipykernel",
        "pypandoc": "pypandoc-binary",
    }
    asked = {one.name.lower().replace("_", "-") for one in requirements("requirements.txt")}
    known = PROGRAMS | OPTIONAL | {"helpers", "lib"} | set(sys.stdlib_module_names)
    for path in tracked("*.py"):
        if {"benchmarks", "tests"} & set(path.parts):
            continue
        for module in {name.split(".")[0] for name in imports(path)} - known:
            assert names.get(module, module).lower().replace("_", "-") in asked, f"{path.name} imports {module}"


def test_the_mathematics_imports_numpy_and_the_standard_library():
    allowed = {"numpy", "threadpoolctl"} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imports(ROOT / "helpers.py")} <= allowed


def test_what_is_imported_lives_in_lib_and_imports_no_program():
    for path in tracked("lib/*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & PROGRAMS, path.name


def test_no_import_runs_in_a_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in tracked("lib/*.py")}
    arrows = {name: {other for other in imports(path) if other in files} for name, path in files.items()}
    while leaves := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other: {sorted(arrows)}"


def test_no_machine_path_no_registry_no_key_no_pickle():
    bad = re.compile(
        r"/(?:work|root|opt|home)/|files\.python"
        + r"hosted|pypi\.or"
        + r"g|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])|allow_pickle=Tru"
        + "e"
    )
    for path in tracked(
        "*.py", "*.md", "*.yml", "*.yaml", "*.toml", "*.txt", "*.ipynb", "*.json", "Makefile", ".ci/run", "*.in"
    ):
        found = bad.search(path.read_text())
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_public_names_have_docstrings_and_nothing_is_left_to_do():
    for path in tracked("*.py"):
        source = path.read_text()
        assert not re.search(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", source), path
        for node in ast.parse(source).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith(("_", "test_"))
            if public and "tests" not in path.parts:
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize("family", ["ACTIVATIONS", "LOSSES", "WEIGHT_INITS", "OPTIMIZERS"])
def test_every_member_of_a_family_says_its_equation(family):
    for name, member in getattr(helpers, family).items():
        function = member[0] if isinstance(member, tuple) else member
        assert re.search(r"[=~]|<-", inspect.getdoc(function)), name


def test_readme_names_the_commands_and_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z-]+)", readme)) <= targets | {"sure"}
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / name).exists(), name


ADDRESSES = [  # where the repository is named: the badge, the citation, any text
    r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)",
    r"url = \{https://github\.com/([\w.-]+/[\w.-]+)\}",
    r"github\.com/([\w.-]+/CS6910[\w-]*)",
]


def test_the_address_of_the_repository_is_the_one_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["urls"]["Repository"].removeprefix("https://github.com/")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(re.search(pattern, readme) for pattern in ADDRESSES[:2])
    for path in tracked("*.md", "*.ipynb", "*.py", "*.typ", "*.j2", "*.lua", "CITATION.cff"):
        text = path.read_text(encoding="utf-8")
        found = (
            {name for pattern in ADDRESSES for name in re.findall(pattern, text)}
            if "tests" not in path.parts
            else set()
        )
        assert found <= {wanted}, f"{path.relative_to(ROOT)} names {found}; pyproject.toml {wanted}"


def test_the_speeds_of_the_readme_are_those_measured():
    measured = (ROOT / "benchmarks/results.md").read_text().split("### sgd")[0]
    readme = (ROOT / "README.md").read_text()
    for peer in ("torch eager", "torch.compile", "scikit-learn", "Keras on JAX", "JAX", "helpers.py compiled"):
        mean, low, high = re.search(rf"- {peer} / helpers.py: ([\d.]+) .*; ([\d.]+) to ([\d.]+)\)", measured).groups()
        assert re.search(rf"^\| {re.escape(peer)}[^|]* \| {mean} \({low} to {high}\) \|", readme, re.M), peer
    ours, low, high = map(
        float, re.search(r"helpers.py / matrix products: ([\d.]+) .*; ([\d.]+) to ([\d.]+)\)", measured).groups()
    )
    assert f"| {1 / ours:.2f} ({1 / high:.2f} to {1 / low:.2f}) |" in readme


def functions(path):
    """All functions of a file, with their lines of code: without docstring, comments and blank lines."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            start = first.end_lineno if ast.get_docstring(node) else node.lineno
            lines = (line.strip() for line in text.split("\n")[start : node.end_lineno])
            yield node, sum(bool(line) and not line.startswith("#") for line in lines)


def test_files_and_functions_are_short_and_a_line_is_one_statement():
    code = [path for path in tracked("*.py") if path.parent == ROOT or path.is_relative_to(ROOT / "lib")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert lines[ROOT / "helpers.py"] <= 650 and lines[ROOT / "sweep.py"] <= 380
    found = [(path, *function) for path in code for function in functions(path)]
    longest = max(found, key=lambda one: one[1].end_lineno - one[1].lineno)
    assert longest[1].end_lineno - longest[1].lineno < 40, f"{longest[0].name}: {longest[1].name}"
    assert statistics.median(count for _, _, count in found) <= 8
    nodes = [node for path in code for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    assigned = [node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)]
    packed = [node for node in assigned if isinstance(node.targets[0], ast.Tuple)]
    assert len(packed) <= 6 * sum(lines.values()) / 1000
