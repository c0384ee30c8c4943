"""What the documents show is what runs: code blocks are cut from the examples, policies are read, examples are executed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sbxproxy.policy import Policy
from support.programs import takes_root

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*ROOT.glob("examples/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]


def blocks(language):
    for document in DOCUMENTS:
        for found in re.finditer(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL):
            yield pytest.param(found[1], id=f"{document.name}:{document.read_text()[: found.start()].count(chr(10)) + 2}")


@pytest.mark.parametrize("block", list(blocks("python")))
def test_a_code_block_stands_in_a_file_that_runs(block):
    assert any(block in source.read_text() for source in SOURCES), "not in examples/ or plugins/"


@pytest.mark.parametrize("block", list(blocks("json")))
def test_a_policy_in_the_documents_is_valid(block):
    Policy.from_json(block)


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_an_example_runs(example):
    if example.name == "gateway.py":
        takes_root()
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if "embed" in example.name:
        assert "response 403" in done.stderr, "the firewall refuses what the policy does not list"


def test_the_sample_policy_is_valid_and_names_its_secret():
    assert Policy.from_json((ROOT / "examples/policy.json").read_text()).secrets == ("github",)


def test_every_relative_link_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_reason_id_is_in_the_policy_reference():
    from sbxproxy.policy import Reason

    text = (ROOT / "docs/policy.md").read_text()
    assert not [reason for reason in Reason if f"`{reason}`" not in text]


def test_every_option_of_run_and_serve_is_in_the_operations_page():
    from sbxproxy.cli.run import run
    from sbxproxy.cli.serve import serve

    text = (ROOT / "docs/operations.md").read_text()
    options = {
        name for command in (run, serve) for parameter in command.params for name in parameter.opts if name.startswith("--")
    }
    assert not [name for name in sorted(options - {"--verbose"}) if f"`{name}" not in text and f" {name}" not in text]
