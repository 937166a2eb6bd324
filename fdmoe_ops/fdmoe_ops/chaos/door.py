"""Clients that nobody wants: slow ones, ones that hang up, ones that talk nonsense, and too many at once."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import Callable

from fdmoe_ops.chaos import malformed
from fdmoe_ops.chaos.load import Pool

# a client that is still served after so long is never cut off
_SLOW_S = 30.0
_BYTE_EVERY_S = 0.1
_PER_CONNECTION = 5
_FLOOD_DEADLINE_S = 120.0
_NONSENSE_AT_ONCE = 32
_NONSENSE_DEADLINE_S = 60.0


def _raw(pool: Pool, index: int) -> bytes:
    body, headers = pool.request(index % len(pool.inputs))
    lines = [f"POST /v2/models/{pool.layer}/infer HTTP/1.1", "Host: door", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _sockets(address: tuple[str, int], count: int) -> list[socket.socket]:
    return [socket.create_connection(address, timeout=10) for _ in range(count)]


def slow_clients(address: tuple[str, int], pool: Pool, count: int = 20) -> Counter[str]:
    """Each sends a byte ten times a second, in the middle of its body, until it is answered; how many got which
    status."""
    return asyncio.run(_slow_clients(address, [_raw(pool, index) for index in range(count)]))


async def _slow_clients(address: tuple[str, int], requests: list[bytes]) -> Counter[str]:
    return Counter(await asyncio.gather(*(_slow_client(address, raw) for raw in requests)))


async def _slow_client(address: tuple[str, int], raw: bytes) -> str:
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


def half_bodies(address: tuple[str, int], pool: Pool, count: int = 50) -> Counter[str]:
    """Each sends half of its body and hangs up."""
    for index, client in enumerate(_sockets(address, count)):
        request = _raw(pool, index)
        client.sendall(request[: request.index(b"\r\n\r\n") + 4 + (len(request) // 4)])
        client.close()
    return Counter({"left": count})


def disconnects(address: tuple[str, int], pool: Pool, count: int = 50) -> Counter[str]:
    """Each sends a whole request and hangs up before the answer."""
    for index, client in enumerate(_sockets(address, count)):
        client.sendall(_raw(pool, index))
        client.close()
    return Counter({"left": count})


def flood(address: tuple[str, int], pool: Pool, count: int = 10_000) -> Counter[str]:
    """So many requests of one token or few, five on each connection, all connections at once; how many got which
    status."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return asyncio.run(_flood(address, pool, count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _flood(address: tuple[str, int], pool: Pool, count: int) -> Counter[str]:
    raw = _raw(pool, min(range(len(pool.inputs)), key=lambda index: len(pool.inputs[index])))

    async def client() -> list[str]:
        reader, writer = await asyncio.open_connection(*address)
        statuses = []
        for _ in range(_PER_CONNECTION):
            writer.write(raw)
            head, _ = await _answer(reader)
            statuses.append(_status(head))
        writer.close()
        return statuses

    async with asyncio.timeout(_FLOOD_DEADLINE_S):
        found = await asyncio.gather(*(client() for _ in range(count // _PER_CONNECTION)), return_exceptions=True)
    counted: Counter[str] = Counter()
    for statuses in found:
        if isinstance(statuses, BaseException):
            counted[f"broken: {type(statuses).__name__}"] += 1
        else:
            counted.update(statuses)
    return counted


def nonsense(address: tuple[str, int], pool: Pool, count: int = 500) -> Counter[str]:
    """So many malformed requests, many at once, each on a connection of its own; how many were `refused` in JSON or
    `cut off`, got 200 because they were none after all, or something that a client must not get."""
    return asyncio.run(_nonsense(address, malformed.Target(pool.layer, pool.datatype, pool.hidden_size), count))


async def _nonsense(address: tuple[str, int], target: malformed.Target, count: int) -> Counter[str]:
    free = asyncio.Semaphore(_NONSENSE_AT_ONCE)

    async def client(raw: bytes) -> str:
        async with free:
            try:
                async with asyncio.timeout(_NONSENSE_DEADLINE_S):
                    return await _outcome(address, raw)
            except TimeoutError:
                return "silence"

    return Counter(await asyncio.gather(*map(client, malformed.requests(target, seed=1, count=count))))


async def _outcome(address: tuple[str, int], raw: bytes) -> str:
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
    refused = status.startswith("4") and list(json.loads(body)) == ["error"]
    return "refused" if refused else status


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return head, await reader.readexactly(int(next(lengths).partition(b":")[2]))


def _status(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode()


VISITS: dict[str, Callable[[tuple[str, int], Pool], Counter[str]]] = {
    "slow-clients": slow_clients, "half-bodies": half_bodies, "disconnects": disconnects, "malformed": nonsense,
    "flood": flood,
}  # fmt: skip
