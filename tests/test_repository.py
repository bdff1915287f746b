# SPDX-License-Identifier: Apache-2.0
"""The repository keeps its own rules: README, one-way imports, a fast command line, documents without dead names."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sharegpt4o_image.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Which part may import which; `cli`, `demo` and `tiny_release` may import all.
_BASE = {"__version__", "errors", "schema"}
ALLOWED_IMPORTS = {
    "errors": set(),
    "schema": set(),
    "janus4o": set(),
    "offline_teacher": _BASE,
    "synthesis": _BASE | {"offline_teacher"},
    "builders": _BASE | {"janus4o", "synthesis"},
    "checkpoints": _BASE | {"janus4o"},
    "training": _BASE | {"janus4o", "checkpoints", "offline_teacher", "builders"},
    "evaluation": _BASE | {"janus4o", "checkpoints", "offline_teacher", "builders", "synthesis"},
    "serving": _BASE | {"janus4o", "checkpoints", "offline_teacher"},
}
ASSEMBLY = {"__init__", "demo", "tiny_release"}  # and the modules of the command line
HUB_CODE_IMPORTS = {
    "torch",
    "numpy",
    "PIL",
    "transformers",
    "safetensors",
    "huggingface_hub",
} | sys.stdlib_module_names
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "openai", "scipy")
VERBS = sorted(
    [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    + [str(group.name) for group in app.registered_groups]
)


def _tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def _readme_tree() -> Iterator[str]:
    """The paths that the README's file tree names: two spaces a level, the name, then what it is."""
    [tree] = re.findall(r"## What is where\n\n```\n(.*?)```", README, flags=re.DOTALL)
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        name = line.split()[0]
        yield "".join([*parents[:depth], name])
        parents[depth:] = [name]


def _modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, under its part: `("training", .../training/sft_config.py)`."""
    for path in (ROOT / "sharegpt4o_image").rglob("*.py"):
        if "assets" in path.parts:  # copies of `janus4o/`
            continue
        yield path.relative_to(ROOT / "sharegpt4o_image").parts[0].removesuffix(".py"), path
    for path in (ROOT / "builders").rglob("*.py"):
        yield "builders", path


def _imported(path: Path) -> Iterator[str]:
    """The absolute names that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module == "sharegpt4o_image":
                yield from (f"sharegpt4o_image.{alias.name}" for alias in node.names)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of tracked files")
class TestReadmeTree:
    def test_it_names_nothing_that_does_not_exist(self) -> None:
        tracked = set(_tracked_files())
        directories = {f"{parent}/" for name in tracked for parent in Path(name).parents}
        assert [name for name in _readme_tree() if name not in tracked | directories] == []

    def test_it_names_every_entry_of_the_root_and_every_module(self) -> None:
        named = set(_readme_tree())
        tracked = _tracked_files()
        roots = {name if "/" not in name else name.split("/")[0] + "/" for name in tracked}
        packages = ("builders/", "sharegpt4o_image/", "benchmarks/")
        modules = {name for name in tracked if name.startswith(packages) and name.endswith(".py")}
        modules = {name for name in modules if not name.endswith("/__init__.py") and "/assets/" not in name}
        assert sorted((roots | modules) - named) == []

    def test_it_names_nothing_twice(self) -> None:
        names = list(_readme_tree())
        assert sorted(set(names)) == sorted(names)


class TestDocuments:
    @pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
    def test_links_to_files_lead_somewhere(self, document: str) -> None:
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
        assert [link for link in links if not (ROOT / link).exists()] == []

    def test_the_readme_uses_verbs_and_targets_that_exist(self) -> None:
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
        assert set(re.findall(r"^sharegpt4o-image ([\w-]+)", blocks, flags=re.MULTILINE)) <= set(VERBS)
        targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(re.findall(r"^make (\w[\w-]*)", blocks, flags=re.MULTILINE)) <= targets

    def test_every_configuration_parses(self) -> None:
        for path in sorted((ROOT / "configs").glob("**/*.yaml")):
            assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path

    def test_constraints_are_exact_and_begin_with_torch(self) -> None:
        lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
        assert lines[0].startswith("torch==")
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


class TestImports:
    def test_they_point_one_way(self) -> None:
        wrong = []
        for part, path in _modules():
            allowed = ALLOWED_IMPORTS.get(part, set())
            for name in _imported(path):
                parts = name.split(".")
                is_ours = parts[0] == "sharegpt4o_image" and len(parts) > 1
                is_free = part in ASSEMBLY or part.startswith("cli")
                if is_ours and not is_free and parts[1] not in allowed | {part}:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
        assert wrong == []

    def test_the_model_code_stands_alone(self) -> None:
        """Its modules are copied to the Hub flat: siblings by `from .sibling import Name`, nothing of ours."""
        for path in (ROOT / "sharegpt4o_image" / "janus4o").glob("*_janus4o.py"):
            assert {name.split(".")[0] for name in _imported(path)} <= HUB_CODE_IMPORTS, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1, f"{path}:{node.lineno}"
                    assert node.module, f"{path}:{node.lineno}"
                    assert "." not in node.module, f"{path}:{node.lineno}"

    def test_every_module_has_a_name_that_says_something(self) -> None:
        assert [path for _, path in _modules() if path.stem in ("utils", "util", "common", "misc", "helpers")] == []


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    """Which is what keeps it under a second."""
    script = f"""
import sys
from sharegpt4o_image.cli import main
sys.argv = ["sharegpt4o-image", *{verb.split()}, "--help"]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout
    assert result.stderr.strip() == "[]"
