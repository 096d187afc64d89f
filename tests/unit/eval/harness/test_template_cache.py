"""Templates of tasks are compiled once each, and render what lm-eval renders without that."""

from __future__ import annotations

from collections import Counter

import pytest
from jinja2 import UndefinedError
from lm_eval import utils

from eval.harness.template_cache import templates_compiled_once

DOCS = [{"question": f"Is {n} even?\n", "choices": ["yes", "no"], "n": n} for n in range(3)]
TEMPLATES = [
    "{{question}}\nA. {{choices[0]}}\nAnswer:\n",
    "{% set all = namespace(n=n) %}{% for choice in choices %}{% set all.n = all.n + 1 %}{% endfor %}{{all.n}}",
    "{{cycler('a', 'b').next()}}{{question | regex_replace('[0-9]', '#')}}{{choices}}",
]


def test_each_template_is_compiled_once_and_renders_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [utils.apply_template(template, doc) for doc in DOCS for template in TEMPLATES]
    compiled, usual = Counter[str](), utils.env.compile

    def watched(source: str) -> object:
        compiled[source] += 1
        return usual(source)

    monkeypatch.setattr(utils.env, "compile", watched)
    with templates_compiled_once():
        assert [utils.apply_template(template, doc) for doc in DOCS for template in TEMPLATES] == expected
    assert compiled == dict.fromkeys(TEMPLATES, 1)
    utils.apply_template(TEMPLATES[0], DOCS[0])
    assert compiled[TEMPLATES[0]] == 2, "nothing of it is left afterwards"


def test_an_unknown_field_still_raises_and_leaves_nothing_behind() -> None:
    with templates_compiled_once():
        for _ in range(2):
            with pytest.raises(UndefinedError):
                utils.apply_template("{{answer}}", DOCS[0])
    with pytest.raises(KeyError), templates_compiled_once():
        raise KeyError
    assert "from_string" not in vars(utils.env)
