"""Values of the protocol, for the properties that need any of them."""

from __future__ import annotations

from hypothesis import strategies as st

from actorraft.raft.messages import ClientKey, Configuration, Member, Token

IDS = st.integers(min_value=0, max_value=2**31)
TEXTS = st.text(max_size=8)
TIMES_S = st.floats(min_value=0, max_value=1e12)


def rosters(ids: st.SearchStrategy[int] = IDS) -> st.SearchStrategy[Configuration]:
    """Configurations without voters that know members, clients, tokens and settings."""

    def some(kind: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
        return st.lists(kind, max_size=2).map(tuple)

    return st.builds(
        Configuration,
        next_node_id=ids,
        storage_ids=some(st.tuples(ids, TEXTS)),
        roster=some(st.builds(Member, ids, TEXTS, TEXTS, TEXTS, ids, TEXTS)),
        clients=some(st.builds(ClientKey, TEXTS, TEXTS, TEXTS)),
        tokens=some(st.builds(Token, TEXTS, TIMES_S, st.booleans(), TEXTS, TEXTS, st.just(-1) | ids)),
        settings=some(st.tuples(TEXTS, TEXTS)),
        **{name: st.just(frozenset()) for name in ("voters", "voters_outgoing", "learners", "learners_next")},
    )


def configurations(
    voters: st.SearchStrategy[int] = IDS, learners: st.SearchStrategy[int] = IDS
) -> st.SearchStrategy[Configuration]:
    """Any configuration, whether it makes sense or not."""
    sets = st.tuples(*(st.frozensets(each, max_size=5) for each in (voters, voters, learners, voters)))
    return st.builds(lambda four, known: Configuration(*four, *known[4:]), sets, rosters(voters))
