"""Options and configuration files: what they come to, and how mistakes are told."""

import re
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sbxproxy.cli.options import configure, operator_options, policy_options
from sbxproxy.policy import Policy
from sbxproxy.settings import Limits
from support.program import write


def configured(*arguments):
    """Return what a command with all shared options makes of *arguments*, or what it says against them."""
    found = []

    @click.command()
    @policy_options
    @operator_options
    @click.pass_context
    def command(ctx, **_):
        found.append(configure(ctx))

    done = CliRunner().invoke(command, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return found[0] if found else done.output


def policy(*arguments):
    return configured(*arguments).source.read()


def test_allow_all_may_be_narrowed():
    narrowed = Policy.parse({"mode": "allow-all", "subnets": {"deny": ["198.51.100.0/24"]}})
    assert policy("--allow-all", "--deny-cidr", "198.51.100.0/24") == narrowed
    assert policy("--allow-all") == Policy.parse("allow-all")


def test_injections_for_one_host_make_one_rule():
    """The first rule that fits a request is the only one, so a second rule would never set its header."""
    made = policy("--inject", "a.example:X-One: 1", "--inject", "a.example:X-Two: 2", "--allow", "b.example")
    rules = made.domains["a.example"]
    assert len(rules.rules) == 1
    assert str(rules.rules[0].document()).count("<redacted>") == 2
    assert made.domains["b.example"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "never runs without a policy"),
        (["--deny-all", "--deny-cidr", "10.0.0.0/8"], "exclude each other"),
        (["--deny-all", "--secret", "x=cmd:echo 'unclosed"], "quotation"),
        (["--deny-all", "--secret", "x=cmd: "], "empty"),
        (["--deny-all", "--secret", "x=env:A", "--secret", "x=env:B"], "given twice"),
    ],
)
def test_mistakes_are_told_without_what_may_be_secret(arguments, said):
    output = configured(*arguments)
    assert said in output
    assert "unclosed" not in output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("allow = [1]", "allow must be a list of strings"),
        ("allow = {a = 1}", "allow must be a list of strings"),
        ('quiet = "yes"', "quiet must be true or false"),
        ('policy = ["a"]', "policy must be a string"),
        ("policy = true", "policy must be a string"),
        ("allow_al = true", "did you mean"),
    ],
)
def test_wrong_values_in_a_file_are_told_by_their_name(text, said, tmp_path):
    assert said in configured("--config", write(tmp_path / "c.toml", text))


def test_one_string_stands_for_a_list_of_one(tmp_path):
    """Not for a list of its letters."""
    assert list(policy("--config", write(tmp_path / "c.toml", 'allow = "a.example"')).domains) == ["a.example"]


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    write(tmp_path / "policy.json", '{"allow": ["a.example"]}')
    config = write(
        tmp_path / "c.toml",
        'policy = "policy.json"\nupstream-ca = ["roots.pem"]\nsecret = ["x=file:token", "y=env:Y", "z=file:/abs"]\nevents = "-"\n',
    )
    found = configured("--config", config)
    assert found.source.path == tmp_path / "policy.json"
    assert found.settings.extra_upstream_roots == [tmp_path / "roots.pem"]
    assert found.secrets["x"].path == tmp_path / "token"
    assert str(found.secrets["z"].path) == "/abs"
    assert found.hidden == {"Y"}
    assert found.events == "-"


def test_a_policy_on_the_command_line_replaces_the_one_in_the_file(tmp_path):
    config = write(tmp_path / "c.toml", 'allow = ["a.example"]\nnever = "10.0.0.0/8"\n')
    found = configured("--config", config, "--deny-all")
    assert found.source.read() == Policy.parse("deny-all")
    assert len(found.settings.never) == 1


def test_a_limit_is_given_by_its_name():
    limits = configured("--deny-all", "--limit", "flows_per_sandbox=20000", "--limit", "idle=none", "--limit", "first-bytes=2.5")
    assert limits.settings.limits == Limits(flows_per_sandbox=20000, idle=None, first_bytes=2.5)
    assert configured("--deny-all").settings.limits == Limits()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flows_per_sandbox", "write NAME=VALUE"),
        ("flow_per_sandbox=1", "did you mean flows_per_sandbox?"),
        ("xyzzy=1", "write NAME=VALUE"),
        ("flows_per_sandbox=none", "flows_per_sandbox must be a positive whole number"),
        ("flows_per_sandbox=1.5", "flows_per_sandbox must be a positive whole number"),
        ("flows=-1", "flows must be a positive whole number or none"),
        ("first_bytes=0", "first_bytes must be a positive number"),
        ("first_bytes=inf", "first_bytes must be a positive number"),
        ("idle=nan", "idle must be a positive number or none"),
    ],
)
def test_a_wrong_limit_is_told(text, says):
    """What bounds nothing must not look like a bound."""
    assert says in configured("--deny-all", "--limit", text)


def test_a_limit_given_twice_is_told():
    assert "idle is given twice" in configured("--deny-all", "--limit", "idle=1", "--limit", "idle=2")


def test_the_table_of_limits_is_right():
    """It is what people read instead of the source."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    written = dict(re.findall(r"`([a-z_]+)` ([0-9.]+|none)", page.partition("|---|")[2]))
    defaults = {name: "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for name, value in asdict(Limits()).items()}  # fmt: skip
    assert written == defaults
