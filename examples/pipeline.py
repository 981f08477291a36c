"""A pipeline of actors, each in a process of its own: `python -m examples.pipeline`.

Each stage knows the next one and returns the future of its answer: it takes the next line while the others work.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from actorraft import Actor, ActorRef, spawn


class Splitter(Actor):
    """Makes words of lines."""

    def __init__(self, following: ActorRef[Cleaner]) -> None:
        self.following = following

    def receive(self, message: str) -> Any:
        return self.following.ask(message.split())


class Cleaner(Actor):
    """Makes words that differ in case and commas alike."""

    def __init__(self, following: ActorRef[Tally]) -> None:
        self.following = following

    def receive(self, message: list[str]) -> Any:
        return self.following.ask([word.strip(".,;").lower() for word in message])


class Tally(Actor):
    """Counts words; answers how many different ones it has seen."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()

    def receive(self, message: list[str]) -> int:
        self.words.update(message)
        return len(self.words)

    def most(self) -> tuple[str, int]:
        """Return the word that came most often."""
        return self.words.most_common(1)[0]


TEXT = ["The log is the truth,", "the state is what the log says;", "who reads the log has the state."]


def main() -> None:
    """Run it."""
    tally = spawn(Tally)
    cleaner = spawn(Cleaner, tally)
    splitter = spawn(Splitter, cleaner)
    different = [answer.result() for answer in [splitter.ask(line) for line in TEXT]][-1]
    word, times = tally.proxy().most()
    print(f"{different} different words; {word!r} came {times} times")
    for ref in (splitter, cleaner, tally):
        ref.stop()


if __name__ == "__main__":
    main()
