"""The public names: what is exported exists, is documented, and costs nothing until it is used."""

import inspect
import subprocess
import sys

import pytest

import sbxproxy
import sbxproxy.stages
import sbxproxy.testing

MODULES = [sbxproxy, sbxproxy.stages, sbxproxy.testing]


def public():
    for module in MODULES:
        for name in module.__all__:
            yield pytest.param(module, name, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_sorted_and_without_repeats(module):
    assert sorted(set(module.__all__)) == sorted(module.__all__)


@pytest.mark.parametrize(("module", "name"), list(public()))
def test_a_public_name_exists_and_says_what_it_is(module, name):
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isclass(value) and value.__module__.startswith("sbxproxy"):
        for member, function in vars(value).items():
            if not member.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
                assert inspect.getdoc(getattr(value, member)), f"{name}.{member} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Proxi'"):
        sbxproxy.Proxi  # noqa: B018


def test_importing_the_package_imports_no_event_loop_and_no_tls():
    """A program that only wants the version, or the policy, pays for nothing else."""
    code = "import sys, sbxproxy, sbxproxy.policy; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for module in ("'trio'", "'OpenSSL'", "'pydantic'", "'h11'", "'cryptography'"):
        assert module not in done.stdout
