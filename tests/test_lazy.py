"""Faces: public names that are imported when they are first used."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sbxproxy
from sbxproxy.lazy import face

ROOT = Path(sbxproxy.__file__).parent
FACES = sorted(
    ".".join(("sbxproxy", *path.parent.relative_to(ROOT).parts))
    for path in ROOT.rglob("__init__.py")
    if "face(" in path.read_text()
)


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", FACES)
def test_a_face_lists_the_names_that_its_type_checker_sees_and_no_others(package):
    """They stand there twice: for type checkers, and for the running program."""
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module.removeprefix(f"{package}.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert module._homes == told
    assert set(told) == set(module.__all__) - {"__version__"}
    assert set(told) <= set(dir(module))


@pytest.mark.parametrize("package", FACES)
def test_a_name_is_the_same_whether_its_module_was_imported_before_or_not(package):
    """Some modules are called as the function in them; importing one makes it an attribute of the package."""
    code = (
        "import importlib, sys, types\n"
        "package = importlib.import_module(sys.argv[1])\n"
        "for home in set(package._homes.values()): importlib.import_module(f'{package.__name__}.{home}')\n"
        "for name in package._homes: assert not isinstance(getattr(package, name), types.ModuleType), name\n"
        "for name, home in package._homes.items():\n"
        "    assert getattr(package, name) is getattr(sys.modules[f'{package.__name__}.{home}'], name), name\n"
    )
    run(code, package)


def test_a_name_is_imported_when_it_is_used_and_not_before():
    code = (
        "import sys, sbxproxy.policy as p\n"
        "assert not any(name.startswith('sbxproxy.policy.') for name in sys.modules)\n"
        "p.judge; assert callable(p.judge) and 'sbxproxy.policy.judge' in sys.modules\n"
        "assert 'sbxproxy.policy.lint' not in sys.modules"
    )
    run(code)


def test_a_name_that_no_face_has_is_an_attribute_error_as_of_any_module():
    with pytest.raises(AttributeError, match=r"module 'sbxproxy\.policy' has no attribute 'juge'"):
        sbxproxy.policy.juge  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'juge'"):
        from sbxproxy.policy import juge  # noqa: F401


def test_a_module_of_another_name_stays_a_module(monkeypatch):
    import types

    package, module = types.ModuleType("made_up"), types.ModuleType("made_up.part")
    module.thing = module.part = object()
    monkeypatch.setitem(sys.modules, "made_up", package)
    monkeypatch.setitem(sys.modules, "made_up.part", module)
    face("made_up", {"part": "thing"})
    package.part = module
    assert package.part is module
    assert package.thing is module.thing
    face("made_up", {"part": "part"})
    package.part = module
    assert package.part is module.part
