"""An actor of coroutines takes many messages at once while each of them waits: `python -m examples.async_actor`."""

from __future__ import annotations

import asyncio
import time

from actorraft import Actor, ActorOptions


class Fetcher(Actor):
    """Answers after a while, as something on a network would; never more than `concurrency` at once."""

    def __init__(self) -> None:
        self.open = self.most = 0

    async def receive(self, message: int) -> int:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.05)
        self.open -= 1
        return message * message

    def most_at_once(self) -> int:
        """Return how many messages it has had open at most."""
        return self.most


async def main() -> None:
    """Run it."""
    ref = ActorOptions(concurrency=20).spawn(Fetcher)
    began_s = time.monotonic()
    squares = await asyncio.gather(*(ref.ask(number) for number in range(40)))
    assert squares == [number * number for number in range(40)]
    most = ref.proxy().most_at_once()
    print(f"40 answers in {time.monotonic() - began_s:.1f} s, {most} messages at once")
    ref.stop()


if __name__ == "__main__":
    asyncio.run(main())
