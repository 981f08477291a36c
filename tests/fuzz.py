"""python -m tests.fuzz: the decoders under atheris, which sees which bytes reach new code (`pip install atheris`).

The decoders take bytes from peers, clients and disks: each must give a value or its own one error. Runs until the time is
over; exits with 1, and a file `crash-...` with the bytes, at any other exception. Hypothesis does the same without coverage
in tests/faults/test_fuzz.py, always.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MARKER = b"01234567"


def targets() -> dict[str, Callable[[bytes], object]]:
    """Name -> takes any bytes, and raises only what is a finding."""
    from actorraft import codec
    from actorraft.errors import CorruptionError
    from actorraft.storage import records
    from actorraft.storage.wal import LogReader, segment_name

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def wire(data: bytes) -> None:
        for decode in (
            codec.decode_message,
            codec.decode_request,
            codec.decode_reply,
            codec.decode_body,
            codec.unstamp,
        ):
            with contextlib.suppress(codec.MalformedFrame):
                decode(data)

    def log(data: bytes) -> None:
        with contextlib.suppress(ValueError, records.struct.error):
            list(records.decode_records(data, 0, len(data)))
        with contextlib.suppress(ValueError):
            records.decode_configuration(data)
        start = records.encode_start(records.Start(records.HardState(), 0, -1, 0))
        head = records.encode_segment_header(records.SegmentHeader(0, b"s" * 16, MARKER))
        batches = b"".join(
            records.encode_batch_header(MARKER, number, body) + body for number, body in enumerate((start, data))
        )
        (folder / f"{segment_name(0)}.wal").write_bytes(head + batches)  # sums are right, records are anything
        with contextlib.suppress(CorruptionError):
            LogReader(folder, b"s" * 16).read()

    return {"wire": wire, "log": log}


def main(
    seconds: Annotated[int, typer.Option(help="How long.")] = 30,
    target: Annotated[
        str, typer.Option(help='"wire" (frames of peers and clients) or "log" (records on disk).')
    ] = "wire",
) -> None:
    """Feed a decoder bytes, guided by coverage."""
    try:
        import atheris  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("atheris is not installed: pip install atheris")
        sys.exit(2)
    with atheris.instrument_imports(include=["actorraft.codec", "actorraft.storage"]):
        found: dict[str, Any] = targets()
    if target not in found:
        raise typer.BadParameter(f"there are {', '.join(found)}")
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096"], found[target])
    atheris.Fuzz()


if __name__ == "__main__":
    typer.run(main)
