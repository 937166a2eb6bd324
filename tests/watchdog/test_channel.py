"""Messages go through whole, typed and versioned; whatever else arrives closes the connection."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import MAX_PACKET_BYTES, Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import Answer, Batch, Hello, Segment, decode, encode

HELLO = Hello(messages.PROTOCOL, "cli", "test", 0, os.getpid())


@pytest.fixture
def listener(tmp_path: Path):
    listener = Listener(tmp_path / "s")
    yield listener
    listener.close()


def wait_for(channel: Channel) -> messages.AnyMessage | None:
    assert select.select([channel], [], [], 5)[0], "nothing came"
    return channel.receive()


def test_messages_arrive_in_order_and_whole(listener: Listener) -> None:
    assert listener.path.stat().st_mode & 0o777 == 0o600
    client = Channel.connect(listener.path, HELLO)
    server = listener.accept()
    assert server is not None
    batch = Batch(3, 9, "m/layers.0", (Segment(0, 512, 2), Segment(256, 1024, 1)))
    client.send(batch)
    client.send(Answer(3, 9, "fused", 1000))
    assert [wait_for(server), wait_for(server), wait_for(server)] == [HELLO, batch, Answer(3, 9, "fused", 1000)]
    assert server.hello == HELLO
    assert server.receive() is None
    client.close()
    with pytest.raises(ChannelClosed, match="peer closed"):
        wait_for(server)


def test_another_protocol_version_is_refused(listener: Listener) -> None:
    Channel.connect(listener.path, Hello(99, "cli", "test", 0, 1))
    server = listener.accept()
    assert server is not None
    with pytest.raises(ChannelClosed, match="peer speaks protocol 99; this side speaks 3"):
        wait_for(server)


def test_noise_is_refused(listener: Listener) -> None:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    raw.connect(str(listener.path))
    server = listener.accept()
    assert server is not None
    raw.send(b"\x93\xa5Hello")
    with pytest.raises(ChannelClosed, match="not a message of protocol 3"):
        wait_for(server)
    raw.close()


def test_a_peer_that_does_not_read_does_not_block_the_sender(listener: Listener) -> None:
    client = Channel.connect(listener.path, HELLO)

    def fill() -> None:
        for _ in range(100_000):
            client.send(Answer(1, 1, "fused", 1))

    with pytest.raises(ChannelClosed, match="peer does not take messages"):
        fill()


def test_too_large_a_message_is_ours_to_avoid(listener: Listener) -> None:
    client = Channel.connect(listener.path, HELLO)
    with pytest.raises(ChannelClosed, match=f"at most {MAX_PACKET_BYTES} are sent"):
        client.send(messages.StatusReply(bytes(MAX_PACKET_BYTES)))


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Channel.connect(tmp_path / "nobody", HELLO)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_decode_error(packet: bytes) -> None:
    try:
        message = decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert decode(encode(message)) == message
