"""Every question that readers could not answer is answered, and a search for its words finds the answer."""

from __future__ import annotations

import re

from tests.docs.blocks import PAGES, ROOT

QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
# What a reader looks for -> pages that must have all of its words; a search of the site takes words, too.
SEARCHES = {
    "another process cluster connect endpoints JSON environment": "tutorial",
    "machines spawn dies survives": "questions",
    "change class method field command rename module Python version": "questions",
    "RaftConfig unit default": "settings",
    "linearizable lease stale promises costs": "clients",
    "publish watch events resume": "clients",
    "wake_at on_clock apply_many digest machine_version snapshot snapshot_while_serving Replace CommandObjects": "machines",
    "test plain cluster simulated faults determinism": "testing",
    "supervision names watch proxy receive raises tell ask stop": "questions",
    "data directory copy snapshot export_snapshot": "operations",
    "lag lag_entries": "questions",
    "trusts client member encrypted": "trust",
    "FastAPI gunicorn preload pytest-xdist notebook": "asyncio",
    "exactly once order new client session": "clients",
    "how many nodes odd number Windows macOS": "questions",
    "machine prints logging logger": "questions",
    "timeout None waits for ever cancelled task": "questions",
    "command async def generator yield decorator": "questions",
    "machine NumPy arrays lock file socket pickled": "questions",
}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", text.lower()))


def test_a_search_for_the_words_of_a_question_finds_a_page_that_answers_it() -> None:
    missing = {
        page: words(search) - words((ROOT / "docs" / f"{page}.md").read_text()) for search, page in SEARCHES.items()
    }
    assert {page: those for page, those in missing.items() if those} == {}


def test_each_question_has_an_answer_that_says_where_the_long_one_is() -> None:
    asked = re.findall(r"^\*\*([^\n]+)\*\*$(.*?)(?=^\*\*|^## |\Z)", QUESTIONS, flags=re.M | re.S)

    assert len(asked) >= 13
    for question, answer in asked:
        assert len(words(answer)) > 5, question
        assert re.search(r"\]\([\w/-]+\.md(#[\w-]+)?\)", answer), f"no page is named: {question}"


def test_a_place_within_a_page_that_another_names_is_there() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./-]*\.md)#([\w-]+)\)", page.read_text()):
            heads = re.findall(r"^#+ (.+)$", (page.parent / target).read_text(), flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name} names {target}#{anchor}"
