"""The wheel holds what the tree holds, under one import name, and works away from the tree."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.support import ROOT

PARTS = ("schedulers", "cache", "constraints", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
RUN_LIMIT = 100  # seconds, below the limit of a test, so that a hanging process shows its output

KERNELS = (
    "dllm.kernels.gated_product",
    "dllm.kernels.residual_norm",
    "dllm.kernels.rotated_write",
    "dllm.kernels.rounding",
    "dllm.kernels.triton_statistics",
    "dllm.models.speed.kernel_passes",
)
IMPORT_ALL = (
    f"OPTIONAL = {KERNELS}\n"
    + """
import importlib, importlib.util, json, pkgutil
import dllm
files = {"dllm": dllm.__file__}
def fail(name): raise ImportError(name)
triton = importlib.util.find_spec("triton")  # of the extra `kernels`, which not every platform has
for found in pkgutil.walk_packages(dllm.__path__, "dllm.", onerror=fail):
    if not triton and found.name in OPTIONAL: continue
    files[found.name] = importlib.import_module(found.name).__file__
print(json.dumps(files))
"""
)


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Passive: two processes whose threads spin for each other's cores take minutes, not seconds.
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=RUN_LIMIT, check=False
    )


def run_well(*command: str, cwd: Path, **environment: str) -> str:
    done = run(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def source_files() -> dict[str, Path]:
    """Every file of the package in the tree, by its path in the wheel; links are not followed."""
    files: dict[str, Path] = {}
    for folder, prefix in [("dllm", "dllm"), *((part, f"dllm/{part}") for part in PARTS)]:
        for parent, _, names in os.walk(ROOT / folder):
            inside = Path(parent).relative_to(ROOT / folder)
            if "__pycache__" not in inside.parts:
                files.update({(prefix / inside / n).as_posix(): Path(parent, n) for n in names})
    return files


def third_party_imports(path: Path) -> set[str]:
    """The top-level names that a module imports, less the standard library and dllm."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"dllm"}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def distribution_names(requirements: list[str]) -> set[str]:
    return {normalised(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy of the tree, which stays clean."""
    copy = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("dllm", *PARTS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=skip)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"))
    run_well(sys.executable, *build, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents as pip lays them out, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target))
    run_well(sys.executable, *install, str(wheel), cwd=target)
    return target


def test_packages_list_equals_tree() -> None:
    modules = [name for name in source_files() if name.endswith(".py")]
    folders = {name.rsplit("/", 1)[0].replace("/", ".") for name in modules}
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders)


def test_every_package_has_an_init() -> None:
    files = source_files()
    missing = [
        p for p in SETUPTOOLS["packages"] if f"{p.replace('.', '/')}/__init__.py" not in files
    ]
    assert not missing


@pytest.mark.parametrize("part", PARTS)
def test_part_is_linked_and_mapped(part: str) -> None:
    link = ROOT / "dllm" / part
    assert link.is_symlink()
    assert link.readlink() == Path("..", part)
    assert SETUPTOOLS["package-dir"][f"dllm.{part}"] == part


def test_package_data_patterns_match_files() -> None:
    files = source_files()
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            folder = package.replace(".", "/")
            matches = [name for name in files if Path(name).match(f"{folder}/{pattern}")]
            assert matches, f"package-data {package}: nothing matches {pattern}"


@pytest.mark.parametrize("part", PARTS)
def test_bare_import_is_refused(part: str) -> None:
    done = run(sys.executable, "-c", f"import {part}", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError:")
    assert f"import dllm.{part}" in done.stderr.splitlines()[-1]


def test_gitignore_keeps_the_parts() -> None:
    files = [str(path.relative_to(ROOT)) for path in source_files().values()]
    done = run("git", "check-ignore", "--no-index", *files, cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert not done.stdout


def test_imports_are_declared() -> None:
    core = distribution_names(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {
        "dllm/constraints/grammar": distribution_names(extras["structured"]),
        "dllm/constraints/prefix": distribution_names(extras["structured"]),
        "dllm/eval/": distribution_names(extras["eval"] + extras["lm-eval"]),
        "dllm/eval/tasks/smiles": distribution_names(extras["smiles"]),
        "dllm/kernels/": distribution_names(extras["kernels"]),
        "dllm/state/trace": distribution_names(extras["pandas"]),
        "dllm/models/speed/": distribution_names(extras["quantise"] + extras["kernels"]),
        "dllm/serve/": distribution_names(extras["serve"]),
        "dllm/integrations/ray": distribution_names(extras["ray"] + extras["serve"]),
        "dllm/integrations/sglang/": {"sglang"},  # which imports us, and brings itself
    }
    providers = packages_distributions()
    for name, path in source_files().items():
        if not name.endswith(".py"):
            continue
        extra = (found for folder, found in optional.items() if name.startswith(folder))
        declared = core.union(*extra)
        for imported in third_party_imports(path):
            known = {normalised(provider) for provider in providers.get(imported, [imported])}
            assert known & declared, (
                f"{name} imports {imported}, which pyproject.toml does not name"
            )


def test_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert held == set(source_files())
    assert licences


@pytest.mark.slow
def test_installed_wheel_imports_every_module(installed: Path, tmp_path: Path) -> None:
    output = run_well(
        sys.executable, "-c", IMPORT_ALL, cwd=tmp_path, PYTHONPATH=str(installed)
    ).splitlines()[-1]
    files: dict[str, str] = json.loads(output)
    outside = {
        name: file for name, file in files.items() if not Path(file).is_relative_to(installed)
    }
    assert not outside
    assert set(SETUPTOOLS["packages"]) <= set(files)
    assert len(files) == sum(name.endswith(".py") for name in source_files())


@pytest.mark.slow
def test_installed_wheel_has_the_checkpoint(installed: Path) -> None:
    checkpoint = installed / "dllm" / "tiny" / "checkpoint"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    weights = [checkpoint / name for name in names if name.endswith(".safetensors")]
    assert weights
    assert all(path.stat().st_size > 0 for path in weights)


@pytest.mark.slow
def test_installed_wheel_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    output = run_well(
        *(sys.executable, "-m", "dllm", "demo", "--limit", "4", "--json"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    report: dict[str, Any] = json.loads(output)
    assert report["rows"]


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = wheel.parent.parent
    build = ("-m", "build", "--no-isolation", "--outdir", str(tmp_path))
    run_well(sys.executable, *build, cwd=source)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist() if "RECORD" not in i.filename} == {
            i.filename: i.CRC for i in second.infolist() if "RECORD" not in i.filename
        }
