"""A body that is read ahead: bounded, in order, and with an eye on the client."""

import asyncio

import pytest

from server.ingest.interrupt import Interrupt
from server.ingest.upload import Upload


def receiver(messages):
    """An ASGI receive that gives these and then waits for ever; it counts what was taken."""
    taken = []

    async def receive():
        if len(taken) == len(messages):
            await asyncio.Event().wait()
        taken.append(messages[len(taken)])
        if isinstance(taken[-1], Exception):
            raise taken[-1]
        return taken[-1]

    return receive, taken


def part(data, more=True):
    return {"type": "http.request", "body": data, "more_body": more}


async def settle():
    for _ in range(100):
        await asyncio.sleep(0)


def test_a_client_that_goes_is_noticed_while_nobody_reads():
    """The end of a connection is told though no chunk has been asked for, within the body and after it."""

    async def check(messages):
        gone = asyncio.Event()
        receive, _ = receiver([*messages, {"type": "http.disconnect"}])
        async with Upload(receive, gone.set):
            await gone.wait()

    asyncio.run(check([part(b"a"), part(b"b")]))
    asyncio.run(check([part(b"a"), part(b"b", more=False)]))


def test_no_more_than_the_read_ahead_is_kept():
    """What nobody asks for stays outside; each chunk that is used makes room, and the body comes in order."""

    async def check():
        receive, taken = receiver([part(b"%04d" % i) for i in range(100)] + [part(b"", more=False)])
        found = []
        async with Upload(receive, lambda: None, read_ahead=16) as upload:
            await settle()
            assert len(taken) == 4
            async for chunk in upload.chunks():
                found.append(chunk)
                await settle()
                assert 4 * (len(taken) - len(found)) <= 16
        assert found == [b"%04d" % i for i in range(100)]

    asyncio.run(check())


def test_what_reading_raises_reaches_the_reader():
    """An error of the body, as 413 is one, comes where the body is used."""

    async def check():
        receive, _ = receiver([part(b"a"), ValueError("too much")])
        async with Upload(receive, lambda: None) as upload:
            with pytest.raises(ValueError, match="too much"):
                [chunk async for chunk in upload.chunks()]

    asyncio.run(check())


def test_stopped_work_cleans_up_and_tells_why():
    """Work that is stopped, before or after it began, ends with the first reason, after its own clean-up."""

    async def check(early):
        cleaned, interrupt = [], Interrupt()

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

        if early:
            interrupt.stop(KeyError("first"))
        else:
            asyncio.get_running_loop().call_later(0, interrupt.stop, KeyError("first"))
            asyncio.get_running_loop().call_later(0, interrupt.stop, KeyError("second"))
        with pytest.raises(KeyError, match="first"):
            await interrupt.run(work())
        assert early or cleaned == [True]

    asyncio.run(check(True))
    asyncio.run(check(False))
