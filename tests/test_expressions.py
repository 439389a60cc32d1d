import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphling_ray.errors import ExpressionError
from morphling_ray.expressions import Expression

names = st.sampled_from(["a", "b"])
numbers = st.floats(0.1, 10).map(repr)
arithmetic = st.recursive(
    names | numbers,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner) | inner.map("-{}".format),
    max_leaves=12,
)


@given(arithmetic, st.floats(0.1, 10), st.floats(0.1, 10))
def test_arithmetic_is_that_of_python(text: str, a: float, b: float) -> None:
    """Fails if two operators, or the sides of one, are swapped."""
    values = {"a": np.float64(a), "b": np.float64(b)}
    try:
        with np.errstate(all="ignore"):
            wanted = eval(text, {"__builtins__": {}}, values)
    except ZeroDivisionError:  # of two literals; ours then follow numpy
        return
    np.testing.assert_allclose(Expression(text)(values), wanted, rtol=1e-12)


@given(st.text(max_size=40) | st.text(alphabet="ab()[]{}.'\"+-*/<>=!:, 09_\\\n", max_size=25))
def test_any_text_is_plain_arithmetic_or_an_expression_error(text: str) -> None:
    """Fails if another exception escapes, or a node that is neither arithmetic nor one comparison is let through."""
    try:
        expression = Expression(text)
    except ExpressionError:
        return
    plain = (
        ast.BinOp,
        ast.UnaryOp,
        ast.Compare,
        ast.Name,
        ast.Constant,
        ast.Load,
        ast.operator,
        ast.unaryop,
        ast.cmpop,
    )
    for node in ast.walk(ast.parse(expression.text.strip(), mode="eval").body):
        assert isinstance(node, plain), ast.dump(node)


@given(
    st.sampled_from(
        [
            "canary()",
            "canary.call()",
            "canary[0]",
            "(lambda: canary())()",
            "[canary() for _ in (1,)]",
            "{canary(): 1}",
            "f'{canary()}'",
            "(x := canary())",
            "canary() if 1 else 2",
            "canary() and 1",
            "canary @ canary",
            "__import__('os').system('true')",
            "().__class__.__bases__",
        ]
    ),
    st.sampled_from(["{}", "1 + {}", "-{}", "a <= {}", "({}) * 2 >= 1", "a ** {}"]),
)
def test_nothing_is_executed(payload: str, around: str) -> None:
    """Fails if calls, attributes, subscripts or other operators are accepted, or if the text is ever `eval`ed."""
    called = []

    class Canary:
        def __call__(self) -> int:
            called.append("call")
            return 1

        __getitem__ = __matmul__ = lambda self, other: called.append("operator")

    with pytest.raises(ExpressionError):
        Expression(around.format(payload))({"canary": Canary(), "a": 1})
    assert not called


@pytest.mark.parametrize(
    "text",
    ["", "a <= b <= c", "True", "'a'", "a and b", "not a", "a % 2", "a // 2", "1j", "1e999", "9" * 400, "a is b"],
)
def test_refused(text: str) -> None:
    """Fails if any of these is let through: none has one clear meaning here."""
    with pytest.raises(ExpressionError):
        Expression(text)


def test_deep_nesting_is_an_expression_error() -> None:
    """Fails if RecursionError or MemoryError of the parser escapes."""
    for text in ("-" * 100_000 + "1", "(" * 5_000 + "1" + ")" * 5_000, "+".join(["1"] * 20_000)):
        with pytest.raises(ExpressionError, match="cannot read"):
            Expression(text)


def test_a_text_cannot_be_multiplied() -> None:
    """Fails if Python's `text * number` is reached: it would fill the memory."""
    with pytest.raises(ExpressionError):
        Expression("a <= 'x' * 99999999999")
    for text in ("gpu * n == 1", "n * gpu == 1", "gpu / 2", "gpu <= 4", "-gpu"):
        with pytest.raises(ExpressionError, match="a text"):
            Expression(text)({"gpu": "V100", "n": 99_999_999_999})
        with pytest.raises(ExpressionError, match="a text"):
            Expression(text)({"gpu": np.array(["V100", "T4"]), "n": np.array([1, 2])})


def test_powers_and_quotients_follow_numpy() -> None:
    """Fails if plain numbers are divided or raised by Python: it raises, or computes for minutes."""
    assert Expression("1 / a")({"a": 0}) == np.inf
    assert Expression("9 ** 9 ** 9")({}) == np.inf
    assert np.isnan(Expression("a ** 0.5")({"a": -1}))


def test_names_and_kind() -> None:
    """Fails if the names of one side are dropped."""
    expression = Expression("cost * a + 2 <= b")
    assert expression.names == {"cost", "a", "b"}
    assert expression.is_comparison
    assert not Expression("a + 1").is_comparison


def test_missing_name_is_told() -> None:
    """Fails if a KeyError escapes."""
    with pytest.raises(ExpressionError, match=r"'a \+ b' names b"):
        Expression("a + b")({"a": 1})


def test_arrays_broadcast_and_categorical_values_compare() -> None:
    """Fails if values are turned into plain numbers."""
    draws = Expression("a * b")({"a": np.ones((3, 1)), "b": np.arange(2)})
    assert draws.shape == (3, 2)
    np.testing.assert_array_equal(Expression("gpu != 'T4'")({"gpu": np.array(["T4", "V100"])}), [False, True])


def test_a_comparison_within_arithmetic_counts_one_or_nothing() -> None:
    """Fails if truth values are added up as such: True + True is True for numpy."""
    price = Expression("0.2 + share * (0.4 * (gpu == 'T4') + 2.6 * (gpu == 'V100')) + (share > 0.1)")
    assert price.names == {"share", "gpu"}
    assert not price.is_comparison
    found = price({"gpu": np.array(["T4", "V100", "M60"]), "share": np.array([0.5, 0.1, 0.2])})
    np.testing.assert_allclose(found, [0.2 + 0.2 + 1, 0.2 + 0.26, 0.2 + 1])
    assert Expression("(a == 1) + (b == 2)")({"a": 1, "b": 2}) == 2
    assert Expression("2 * (gpu == 'T4')")({"gpu": "T4"}) == 2
    assert Expression("(a <= 2) + 1 <= 2")({"a": 1})


def test_slack_is_relative_to_the_limit_and_positive_where_the_bound_holds() -> None:
    """Fails if the sign of one direction is wrong, or if slack is absolute."""
    assert Expression("a <= 100")({"a": 97}) == 1
    assert Expression("a <= 100").slack({"a": 97}) == pytest.approx(0.03)
    assert Expression("a >= 100").slack({"a": 97}) == pytest.approx(-0.03)


@pytest.mark.parametrize("text", ["a", "a == 1", "a != 1"])
def test_slack_needs_a_bound(text: str) -> None:
    """Fails if an equation is taken for a bound."""
    with pytest.raises(ExpressionError, match="is not a bound"):
        Expression(text).slack({"a": 1})
