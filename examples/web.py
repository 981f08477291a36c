"""A bank behind FastAPI: the cluster is one, the web server's workers come and go, and each is a client.

Run: `python web.py` (two workers), `python web.py --reload`, or, for a cluster that is served on other machines,
`BANK=bank/client uvicorn web:app --workers 4`.

Needs fastapi and uvicorn.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from actorraft import (
    Client,
    OutcomeUnknown,
    ReplicatedStateMachine,
    StateMachine,
    Unavailable,
    command,
    connect_async,
    query,
)


class Bank(StateMachine):
    """Accounts; a deposit with an id that was seen before is not made again."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}
        self.made: dict[str, int] = {}  # id of a deposit -> what the account held after it

    @command
    def deposit(self, request_id: str, name: str, amount: int) -> int:
        """Add to an account, once for each id; return what is there then."""
        if request_id not in self.made:
            self.accounts[name] = self.accounts.get(name, 0) + amount
            self.made[request_id] = self.accounts[name]
        return self.made[request_id]

    @query
    def balance(self, name: str) -> int:
        """Return what is there."""
        return self.accounts.get(name, 0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Be a client for as long as this worker lives. `BANK` is endpoints as JSON, or a client's folder."""
    where = os.environ["BANK"]
    endpoints = json.loads(where) if where.startswith("{") else where
    async with await connect_async(endpoints, Bank, timeout=30.0) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


def bank_of(request: Request) -> Bank:
    """Return the bank, as the worker's client reaches it; calls are awaited, with `aio`."""
    client: Client[Bank] = request.app.state.client
    return client.proxy(timeout=5.0)


@app.exception_handler(Unavailable)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """Nothing was done, and nothing will be: it is safe to try again."""
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})


@app.exception_handler(OutcomeUnknown)
async def unknown(request: Request, error: Exception) -> JSONResponse:
    """It may be done. The same request with the same id is safe, since the bank knows the id."""
    return JSONResponse({"detail": str(error)}, status_code=504)


@app.post("/accounts/{name}/deposits/{request_id}")
async def deposit(request: Request, name: str, request_id: str, amount: int) -> dict[str, int]:
    """Deposit."""
    if amount <= 0:
        raise HTTPException(422, "a deposit is above 0")
    return {"balance": await bank_of(request).deposit.aio(request_id, name, amount), "worker": os.getpid()}


@app.get("/accounts/{name}")
async def balance(request: Request, name: str) -> dict[str, int]:
    """Return a balance, with all that was acknowledged before."""
    return {"balance": await bank_of(request).balance.aio(name)}


def main() -> None:
    """Start a cluster on this machine, and workers that are clients of it; both end together."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--reload", action="store_true", help="one worker, started again when a file changes")
    options.add_argument("--data-dir", default=None, help="where the bank stays; by default it ends with this program")
    asked = options.parse_args()
    with ReplicatedStateMachine(Bank).spawn(3, data_dir=asked.data_dir) as cluster:
        os.environ["BANK"] = json.dumps(cluster.endpoints)
        print(os.environ["BANK"], flush=True)  # for other clients
        uvicorn.run(
            f"{Path(__file__).stem}:app",
            app_dir=str(Path(__file__).parent),
            port=asked.port,
            workers=None if asked.reload else asked.workers,
            reload=asked.reload,
            log_level="warning",
        )


if __name__ == "__main__":
    main()
