"""Rules read without the models are read as with them, or left to them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbxproxy.errors import PolicyError
from sbxproxy.policy import reading
from sbxproxy.policy.action import Forward, Respond, SetHeaders, Transform
from sbxproxy.policy.match import Matcher
from sbxproxy.policy.model import Policy
from sbxproxy.policy.plain import read_rules

MATCHERS = [{"exact": "/v1"}, {"startsWith": "/v1/%C3%A9"}, {"regex": "^/a"}]
IN_ORDER = [
    [{"transform": [{"headers": {"X-B": "Bearer ${secret:a}", "a": "2"}}, {"headers": {}}]}],
    [{"transform": []}, {"match": {}, "transform": []}],
    [{"forwardURL": "https://b.example:8443/base", "match": {"path": {"exact": "/%40/x"}}}],
    [
        {
            "match": {"path": MATCHERS[1], "method": ["GET", "POST"]},
            "response": {"statusCode": 299, "contentType": "a/b", "body": "é"},
        }
    ],
    [{"match": {"method": {"exact": "GET"}}, "response": {"statusCode": 204}}],
    [
        {
            "match": {
                "queryString": [{"key": {"exact": "A"}}, {"value": {"regex": "x|y"}}],
                "headers": [{"key": {"exact": "A"}}],
            },
            "transform": [],
        }
    ],
]
LEFT = [
    [{}],
    [{"match": {}}],
    [{"transform": [], "forwardURL": "https://b.example"}],
    [{"transform": [], "other": 1}],
    [{"transform": {}}],
    [{"transform": [{}]}],
    [{"transform": [{"plugin": "p", "config": {}}]}],
    [{"transform": [{"headers": {"a": "1", "A": "2"}}]}],
    [{"transform": [{"headers": {"host": "1"}}]}],
    [{"transform": [{"headers": {"a": "\n"}}]}],
    [{"transform": [{"headers": {"a": 1}}]}],
    [{"transform": [{"headers": {"a": "${x}"}}]}],
    [{"forwardURL": "http://b.example"}],
    [{"forwardURL": None}],
    [{"response": {}}],
    [{"response": {"statusCode": True}}],
    [{"response": {"statusCode": 200.0}}],
    [{"response": {"statusCode": 199}}],
    [{"response": {"statusCode": 600}}],
    [{"response": {"statusCode": 204, "body": "x"}}],
    [{"response": {"statusCode": 200, "contentType": ""}}],
    [{"response": {"statusCode": 200, "body": "\ud800"}}],
    [{"match": {"path": {}}, "transform": []}],
    [{"match": {"path": {"exact": "/", "regex": "/"}}, "transform": []}],
    [{"match": {"path": {"exact": "/\ud800"}}, "transform": []}],
    [{"match": {"path": {"regex": "("}}, "transform": []}],
    [{"match": {"method": []}, "transform": []}],
    [{"match": {"method": ["get"]}, "transform": []}],
    [{"match": {"method": "GET"}, "transform": []}],
    [{"match": {"queryString": [{}]}, "transform": []}],
    [{"match": {"queryString": {}}, "transform": []}],
    [{"match": {"queryString": [{"value": {"exact": "\ud800"}}]}, "transform": []}],
    [{"match": None, "transform": []}],
    [{"match": {"host": {}}, "transform": []}],
    [{1: 2, "transform": []}],
    ({"transform": []},),
    [None],
    None,
]


def by_the_models(listed: object, monkeypatch: pytest.MonkeyPatch) -> Policy | PolicyError:
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_read_plain", lambda *_: None)
        try:
            return Policy.parse({"allow": {"a.example": listed}})
        except PolicyError as error:
            return error


def compared(policy: Policy) -> list[object]:
    """What equality of matchers leaves out."""
    rules = policy.domains["a.example"]
    assert rules is not None
    pairs = [pair for rule in rules.rules for pair in (*rule.match.query, *rule.match.headers)]
    matchers = [rule.match.path for rule in rules.rules] + [half for pair in pairs for half in (pair.key, pair.value)]
    return [(one._compared, one._regex and one._regex.pattern) for one in matchers if isinstance(one, Matcher)]


def check_same(listed: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.parse({"allow": {"a.example": listed}})
    models = by_the_models(listed, monkeypatch)
    assert policy == models
    assert isinstance(models, Policy)
    assert compared(policy) == compared(models)
    assert policy.document() == models.document()


@pytest.mark.parametrize("listed", IN_ORDER)
def test_rules_in_order_are_recognised(listed: list[object], monkeypatch):
    assert read_rules(listed) is not None
    check_same(listed, monkeypatch)


@pytest.mark.parametrize("listed", LEFT)
def test_whatever_else_is_left_to_the_models(listed: object, monkeypatch):
    """Which accept it or tell what is wrong; the way through both comes to the same."""
    assert read_rules(listed) is None
    models = by_the_models(listed, monkeypatch)
    try:
        assert Policy.parse({"allow": {"a.example": listed}}) == models
    except PolicyError as error:
        assert isinstance(models, PolicyError)
        assert error.problems == models.problems


def test_what_rules_do_is_told_from_each_other():
    """The three actions, by their keys."""
    rules = [read_rules(listed) for listed in IN_ORDER[:1] + IN_ORDER[2:4]]
    actions = [type(found[0].action) for found in rules if found]
    assert actions == [Transform, Forward, Respond]
    assert rules[0] is not None
    action = rules[0][0].action
    assert isinstance(action, Transform)
    assert isinstance(action.steps[0], SetHeaders)
    assert [name for name, _ in action.steps[0].headers] == ["X-B", "a"]


def test_equal_objects_of_other_types_are_not_taken():
    """A subclass of ``str`` or ``dict`` could answer differently each time it is asked."""

    class Text(str):
        __slots__ = ()

    class Map(dict[str, object]):
        __slots__ = ()

    assert read_rules([{"forwardURL": Text("https://b.example")}]) is None
    assert read_rules([Map(transform=[])]) is None


texts = st.sampled_from(["/v1", "/", "a/b", "x", "é", "", "\ud800", "${secret:a}", "${", "(", "\n", "get", "host"])
leaves = texts | st.sampled_from([None, True, 0, 1.5, 200, 204, 600])
keys = st.sampled_from(
    "match transform forwardURL response headers plugin config statusCode contentType body path method queryString exact startsWith "
    "regex key value x-a X_A".split()
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


def mostly(strategy: st.SearchStrategy[object], other: st.SearchStrategy[object] = anything) -> st.SearchStrategy[object]:
    """Seldom something else."""
    return st.integers(0, 29).flatmap(lambda number: strategy if number else other)


def matchers(*good: str) -> st.SearchStrategy[object]:
    text = mostly(st.sampled_from(good), texts)
    return mostly(st.dictionaries(st.sampled_from(["exact", "startsWith", "regex"]), text, min_size=1, max_size=1))


some = matchers("x", "é", "${")
pairs = st.lists(mostly(st.fixed_dictionaries({"key": some}, optional={"value": some})), max_size=2)
method = mostly(st.sampled_from(["GET", "PUT"]), texts)
methods = mostly(st.lists(method, min_size=1, max_size=2) | st.fixed_dictionaries({"exact": method}))
match = st.fixed_dictionaries(
    {}, optional={"path": matchers("/", "/v1", "/%40"), "method": methods, "queryString": mostly(pairs), "headers": mostly(pairs)}
)
value = mostly(st.sampled_from(["1", "Bearer ${secret:a}", "\t"]), texts)
headers = st.dictionaries(mostly(st.sampled_from(["x-a", "X-B", "X_C"]), texts).filter(lambda name: isinstance(name, str)), value)
steps = st.lists(mostly(st.fixed_dictionaries({"headers": mostly(headers)})), max_size=2)
response = st.fixed_dictionaries(
    {"statusCode": mostly(st.sampled_from([200, 599]), leaves)},
    optional={"contentType": mostly(st.just("a/b"), texts), "body": mostly(st.sampled_from(["", "é"]), texts)},
)
actions = st.one_of(
    st.fixed_dictionaries({"transform": mostly(steps)}),
    st.fixed_dictionaries({"forwardURL": mostly(st.just("https://b.example/v1"))}),
    st.fixed_dictionaries({"response": mostly(response)}),
)
rules = mostly(st.tuples(actions, st.fixed_dictionaries({}, optional={"match": mostly(match)})).map(lambda two: two[0] | two[1]))


@settings(deadline=None)  # the first example imports the models
@given(listed=st.lists(rules, min_size=1, max_size=2))
def test_nothing_is_accepted_that_the_models_refuse(listed: list[object]):
    with pytest.MonkeyPatch.context() as monkeypatch:
        if read_rules(listed) is not None:
            check_same(listed, monkeypatch)
