"""Clients that nobody wants: slow ones, ones that hang up, ones that talk nonsense, and too many at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable

from fdmoe_ops.chaos import malformed
from fdmoe_ops.chaos.target import Address, Known, Target

# a client that is still served after so long is never cut off
_SLOW_S = 30.0
_BYTE_EVERY_S = 0.1
_FLOOD_DEADLINE_S = 120.0
# the gateway's listener queues 2048 (gateway/address.py), and others' connections are among them
_CONNECTING_AT_ONCE = 512
_RETRY_S = 0.05
# what else is open in the gateway, whose limit is mostly the same, and in whoever floods
_OTHER_FILES = 256
_RESET = struct.pack("ii", 1, 0)
_NONSENSE_AT_ONCE = 32
_NONSENSE_DEADLINE_S = 60.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _sockets(address: Address, count: int) -> list[socket.socket]:
    return [socket.create_connection(address, timeout=10) for _ in range(count)]


def slow_clients(address: Address, target: Target, count: int = 20) -> Counter[str]:
    """Each sends a byte ten times a second, in the middle of its body, until it is answered; how many got which
    status."""
    return asyncio.run(_slow_clients(address, [target.raw(index) for index in range(count)]))


async def _slow_clients(address: Address, requests: list[bytes]) -> Counter[str]:
    return Counter(await asyncio.gather(*(_slow_client(address, raw) for raw in requests)))


async def _slow_client(address: Address, raw: bytes) -> str:
    reader, writer = await asyncio.open_connection(*address)
    body = raw.index(b"\r\n\r\n") + 4
    writer.write(raw[: body + 1])
    answer = asyncio.create_task(_answer(reader))
    try:
        async with asyncio.timeout(_SLOW_S):
            for byte in raw[body + 1 :]:
                if (await asyncio.wait({answer}, timeout=_BYTE_EVERY_S))[0]:
                    break
                writer.write(bytes([byte]))
            head, _ = await answer
    except TimeoutError:
        return "never cut off"
    except (asyncio.IncompleteReadError, ConnectionError):
        return "cut off"
    finally:
        answer.cancel()
        writer.close()
    return _status(head)


def half_bodies(address: Address, target: Target, count: int = 50) -> Counter[str]:
    """Each sends half of its body and hangs up."""
    for index, client in enumerate(_sockets(address, count)):
        request = target.raw(index)
        client.sendall(request[: request.index(b"\r\n\r\n") + 4 + (len(request) // 4)])
        client.close()
    return Counter({"left": count})


def disconnects(address: Address, target: Target, count: int = 50) -> Counter[str]:
    """Each sends a whole request and hangs up before the answer."""
    for index, client in enumerate(_sockets(address, count)):
        client.sendall(target.raw(index))
        client.close()
    return Counter({"left": count})


def flood(address: Address, target: Target, count: int = 10_000) -> Counter[str]:
    """So many requests at once, each on a connection of its own; how many got which status. Where the hard
    limit of open files allows fewer `connections`, it says how many there were: each has its share of the requests, one
    after the other. They are the target's known one, whose 200s may be `wrong`, or else of one token."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else max(1, hard - _OTHER_FILES)
    connections = min(count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        raw = target.whole(*target.known_or_random())
        ended, outputs = asyncio.run(_flood(address, raw, count, connections))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if connections < count:
        ended["connections"] = connections
    # when all is over: judges take their time
    if (known := target.known) is not None:
        wrong = sum(times for output, times in outputs.items() if known.is_wrong(output))
        ended += Counter({"200": -wrong, "wrong": wrong})
    return ended


async def _flood(address: Address, raw: bytes, count: int, connections: int) -> tuple[Counter[str], Counter[bytes]]:
    """How many got which status, and which output."""
    free = asyncio.Semaphore(_CONNECTING_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + _FLOOD_DEADLINE_S
    streams = await asyncio.gather(*(_connect(address, free, deadline) for _ in range(connections)))
    # all are there, and begin together
    shares = (count // connections + (index < count % connections) for index in range(connections))
    outputs: Counter[bytes] = Counter()
    asked = (_ask(pair, raw, share, deadline, outputs) for pair, share in zip(streams, shares, strict=True))
    return sum(await asyncio.gather(*asked), Counter()), outputs


async def _connect(address: Address, free: asyncio.Semaphore, deadline: float) -> Streams | None:
    """Again and again until the deadline: a listener's queue is shorter than the crowd."""
    try:
        async with asyncio.timeout_at(deadline), free:
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection(*address)
                    # it ends with a reset: otherwise its port would be taken for a minute more
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return reader, writer
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        return None


async def _ask(
    streams: Streams | None, raw: bytes, count: int, deadline: float, outputs: Counter[bytes]
) -> Counter[str]:
    if streams is None:
        return Counter({"no connection": count})
    reader, writer = streams
    told: Counter[str] = Counter()
    try:
        async with asyncio.timeout_at(deadline):
            for _ in range(count):
                writer.write(raw)
                head, body = await _answer(reader)
                status = _status_of_flood(head)
                told[status] += 1
                if status == "200":
                    outputs[_tensor(head, body)] += 1
    except TimeoutError:
        told["silence"] = count - told.total()
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        told[f"broken: {type(error).__name__}"] = count - told.total()
    finally:
        writer.transport.abort()
    return told


def _status_of_flood(head: bytes) -> str:
    status = _status(head)
    return status if status != "503" or b"\r\nretry-after:" in head.lower() else "503 without Retry-After"


def nonsense(address: Address, target: Target, count: int = 500) -> Counter[str]:
    """So many malformed requests, many at once, each on a connection of its own; how many were `refused` in JSON or
    `cut off`, got 200 because they were not malformed after all, or something that a client must not get. Where the
    target's request is known, each 200 is judged: it may be `wrong`."""
    return asyncio.run(_nonsense(address, target, count))


async def _nonsense(address: Address, target: Target, count: int) -> Counter[str]:
    free = asyncio.Semaphore(_NONSENSE_AT_ONCE)

    async def client(raw: bytes) -> str:
        async with free:
            try:
                async with asyncio.timeout(_NONSENSE_DEADLINE_S):
                    return await _outcome(address, target, raw)
            except TimeoutError:
                return "silence"

    return Counter(await asyncio.gather(*map(client, malformed.requests(target, seed=1, count=count))))


async def _outcome(address: Address, target: Target, raw: bytes) -> str:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(raw)
        await writer.drain()
        head, body = await _answer(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "cut off"
    finally:
        writer.close()
    status = _status(head)
    if status == "200" and target.known is not None:
        return _verdict(target, target.known, raw, head, body)
    return "refused" if status.startswith("4") and _is_error(body) else status


def _verdict(target: Target, known: Known, raw: bytes, head: bytes, body: bytes) -> str:
    """How a malformed request that got 200 ended. It was made from the known one, whose numbers it must still have:
    what is right for others nobody knows."""
    if _numbers(target, raw.partition(b"\r\n\r\n")[2], "inputs") != known.data:
        return "200 to nonsense"
    output = _tensor(head, body) or _numbers(target, body, "outputs")
    return "wrong" if known.is_wrong(output) else "200"


def _numbers(target: Target, text: bytes, name: str) -> bytes:
    """Of the tensor in this JSON; none if it is not there."""
    with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError, RecursionError, struct.error):
        return target.pack(json.loads(text)[name][0]["data"])
    return b""


def _tensor(head: bytes, body: bytes) -> bytes:
    """What follows the JSON of an answer; nothing if all of it is JSON."""
    length = _number(head, b"inference-header-content-length")
    return b"" if length is None else body[length:]


def _is_error(body: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return list(json.loads(body)) == ["error"]
    return False


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _number(head, b"content-length")
    if length is None:
        raise ConnectionError("an answer without a length")
    return head, await reader.readexactly(length)


def _number(head: bytes, name: bytes) -> int | None:
    """Of the header with this name."""
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((int(value) for found, _, value in lines if found.lower() == name), None)


def _status(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode()


# how many clients ended how
Visit = Callable[[Address, Target], Counter[str]]
VISITS: dict[str, Visit] = {
    "slow-clients": slow_clients, "half-bodies": half_bodies, "disconnects": disconnects, "malformed": nonsense,
    "flood": flood,
}  # fmt: skip
