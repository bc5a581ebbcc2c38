"""The order of the rooms: imports go one way, from the room and not from behind its door, and nothing private."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "preprocessing": ["media", "features", "faces", "speech", "run"],
    "rcma": ["abaw", "model", "fast_cpu", "data", "prediction", "experts", "training", "output", "cli"],
}
"""In order: each may use those before it."""
MODULES = [path for package in ROOMS for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each thing that is taken from one of the packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ROOMS:
            for alias in node.names:
                yield node.lineno, node.module, alias.name


def room_of(module: str) -> str | None:
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return room if room in ROOMS[package] else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_order_of_the_rooms(path: Path) -> None:
    package, *parts = path.relative_to(ROOT).with_suffix("").parts
    here = parts[0] if parts and parts[0] in ROOMS[package] else None
    for line, module, name in imports(path):
        where = f"line {line}: {module} import {name}"
        there_package, there = module.partition(".")[0], room_of(module)
        assert not name.startswith("_") or name == "__version__", f"{where}: private"
        if package == "preprocessing":
            assert there_package == "preprocessing", f"{where}: preprocessing never imports rcma"
        if there is None or (there_package, there) == (package, here):
            continue
        assert module == f"{there_package}.{there}", f"{where}: import it from the room"
        if here is not None and there_package == package:
            order = ROOMS[package]
            assert order.index(there) < order.index(here), f"{where}: a later room"


def test_every_room_says_what_comes_in_and_goes_out() -> None:
    for package, rooms in ROOMS.items():
        assert set(rooms) == {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        for room in rooms:
            text = ast.get_docstring(ast.parse((ROOT / package / room / "__init__.py").read_text(encoding="utf-8")))
            assert text is not None and [line[:4] for line in text.splitlines()] in (
                ["In: ", "Out:"],
                ["In: ", "Out:", ""],
            )
