"""The demo holds what it claims, and fails when a claim doesn't hold."""

from sbxproxy.cli.demo import Story
from sbxproxy.cli.demo_database import find_programs
from support.program import sbxproxy


def test_the_demo_holds():
    done = sbxproxy("demo", timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == (11 if find_programs() is not None else 8)


def test_a_claim_that_does_not_hold_fails_the_story():
    story = Story()
    story.step("one", "seen", holds=True)
    assert story.holds
    story.step("two", "seen", holds=False)
    assert not story.holds


def test_a_broken_firewall_fails_the_demo():
    """With a judge that allows everything, the demo must notice."""
    import subprocess
    import sys

    code = (
        "from sbxproxy.connection.context import Context; from sbxproxy.policy import Policy; anything = Policy.parse('allow-all')\n"
        "Context.judge = lambda self, facts: self._verdicts.judge(anything, facts)\n"
        "from sbxproxy.cli import main; import sys; sys.argv = ['sbxproxy', 'demo']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stdout
    assert "✗" in done.stdout, done.stderr
