"""Several requests on their way at once: answers in order, each once, however they are cut into packets."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.disk import Gate
from tests.support.server import BYTES, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import Response, Wire, chunked, post, request


def position(answer: Response) -> int:
    return int(answer.offset.partition("_")[2])


async def test_requests_of_one_packet_are_answered_in_order(memory: Running) -> None:
    """Reads and writes that arrive together are executed and answered in the order in which they came."""
    wire = await memory.connect()
    await wire.send(
        request("PUT", "/v1/stream/a", TEXT)
        + post("/v1/stream/a", b"one,")
        + request("GET", "/v1/stream/a")
        + post("/v1/stream/a", b"two,")
        + request("GET", "/v1/stream/a")
        + request("HEAD", "/v1/stream/a")
        + request("DELETE", "/v1/stream/a")
        + request("GET", "/v1/stream/a")
    )
    methods = ["PUT", "POST", "GET", "POST", "GET", "HEAD", "DELETE", "GET"]
    answers = [await wire.response(method) for method in methods]
    assert [a.status for a in answers] == [201, 204, 200, 204, 200, 200, 204, 404]
    assert (answers[2].body, answers[4].body) == (b"one,", b"one,two,")
    assert not any(a.closes for a in answers)


async def test_appends_of_one_packet_wait_for_their_commits(disk: Running, gate: Gate) -> None:
    """Pipelined appends are each acknowledged once, in order, and not before the disk has them."""
    target = await disk.create("a")
    wire = await disk.connect()
    gate.shut()
    await wire.send(b"".join(post(target, b"%d," % n) for n in range(20)) + request("GET", target))
    await gate.reached()
    assert wire.is_quiet()
    gate.open()
    answers = [await wire.response() for _ in range(20)]
    assert [a.status for a in answers] == [204] * 20
    assert [position(a) for a in answers] == list(range(1, 21))
    assert (await wire.response()).body == b"".join(b"%d," % n for n in range(20))
    assert wire.is_quiet()


async def test_a_long_poll_in_the_middle_holds_up_what_follows(memory: Running) -> None:
    """A request behind a long poll is answered after it, and executed after it."""
    await memory.create("a")
    await memory.create("b")
    wire = await memory.connect()
    await wire.send(
        post("/v1/stream/b", b"before,")
        + request("GET", "/v1/stream/a", {"Prefer": "wait=20"})
        + post("/v1/stream/b", b"after")
        + request("GET", "/v1/stream/b")
    )
    assert (await wire.response()).status == 204
    await until(lambda: memory.waiters("a") == 1)
    assert await memory.body_of("/v1/stream/b") == b"before,"
    assert wire.is_quiet()
    await memory.append("/v1/stream/a", b"woken")
    assert (await wire.response()).body == b"woken"
    assert (await wire.response()).status == 204
    assert (await wire.response()).body == b"before,after"


async def test_a_refused_request_in_the_middle_stops_nothing(memory: Running) -> None:
    """A request that is refused for what it asks is answered in its place; those behind it are executed."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(
        post(target, b"one,")
        + post("/v1/stream/none", b"x")
        + post(target, b"x", {"Content-Type": "application/json"})
        + post(target, b"")
        + request("PATCH", target)
        + post(target, b"two")
        + request("GET", target)
    )
    answers = [await wire.response() for _ in range(7)]
    assert [a.status for a in answers] == [204, 404, 409, 400, 405, 204, 200]
    assert answers[-1].body == b"one,two"
    assert not any(a.closes for a in answers)


async def test_what_cannot_be_read_ends_the_connection_after_the_answers_before_it(disk: Running, gate: Gate) -> None:
    """A malformed request is answered last: those before it are answered and open, those behind it never executed."""
    target = await disk.create("a")
    wire = await disk.connect()
    gate.shut()
    await wire.send(
        post(target, b"one,") + post(target, b"two,") + b"NOT HTTP\r\n\r\n" + post(target, b"smuggled") + b"\x00\r\n"
    )
    await gate.reached()
    gate.open()
    for number in (1, 2):
        answer = await wire.response()
        assert (answer.status, position(answer)) == (204, number)
        assert not answer.closes, "a client that is told the connection closes does not read on"
    assert (await wire.last_response()).status == 400
    assert await disk.body_of(target) == b"one,two,"


async def test_after_a_request_that_closes_nothing_is_executed(memory: Running) -> None:
    """What a client sends behind ``Connection: close`` is neither executed nor answered (RFC 9112 section 9.6)."""
    target = await memory.create("a")
    for _ in range(2):
        wire = await memory.connect()
        await wire.send(request("GET", "/healthz", {"Connection": "close"}) + post(target, b"smuggled"))
        assert (await wire.last_response()).status == 200
        wire = await memory.connect()
        await wire.send_apart(request("GET", "/healthz", {"Connection": "close"}), post(target, b"smuggled"))
        assert (await wire.last_response()).status == 200
    assert await memory.body_of(target) == b""


async def test_only_the_last_answer_to_a_half_closed_client_says_close(disk: Running, gate: Gate) -> None:
    """Where more answers follow, an answer does not announce the end of the connection."""
    target = await disk.create("a")
    wire = await disk.connect()
    gate.shut()
    await wire.send(b"".join(post(target, b"%d," % n) for n in range(5)))
    wire.half_close()
    await gate.reached()
    await disk.ask("GET", "/healthz")
    gate.open()
    answers = [await wire.response() for _ in range(5)]
    assert [a.status for a in answers] == [204] * 5
    assert [a.closes for a in answers[:-1]] == [False] * 4
    assert await wire.ended()


async def test_many_requests_at_once_are_answered_or_refused_but_never_lost(memory: Running) -> None:
    """However many requests a client sends ahead, each that is executed is answered: a record for each 204."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(b"".join(post(target, b"%d," % n) for n in range(500)))
    wire.half_close()
    acknowledged = 0
    answer = await wire.response()
    while answer.status == 204:
        acknowledged += 1
        assert position(answer) == acknowledged
        if acknowledged == 500:
            break
        answer = await wire.response()
    assert acknowledged >= 16
    if acknowledged < 500:
        assert (answer.status, answer.closes) == (503, True)
    assert await wire.ended()
    assert await memory.body_of(target) == b"".join(b"%d," % n for n in range(acknowledged))


async def test_a_large_body_before_a_head_does_not_count_as_head(memory: Running) -> None:
    """The limit of a head counts the head: neither the body in front of it, nor the packet it came in."""
    target = await memory.create("a", BYTES)
    body = b"x" * 60_000  # more than a head may have, less than a packet of the loopback
    data = post(target, body, BYTES)
    wire = await memory.connect()
    for cut in (1, 20, len(data) - len(body) - 1, 100, 30_000):
        tail = request("GET", "/healthz")
        await wire.send_apart(data + tail[:10], tail[10:])
        assert (await wire.response()).status == 204
        assert (await wire.response()).status == 200
        await wire.send_apart(data[:cut], data[cut:] + tail[:10], tail[10:])
        assert (await wire.response()).status == 204
        assert (await wire.response()).status == 200


async def test_requests_behind_a_long_answer_are_answered(disk: Running) -> None:
    """Requests that arrive while a long answer is being sent get their answers after it, wherever they were cut."""
    body = bytes(range(256)) * 8192  # 2 MiB
    target = await disk.create("a", BYTES)
    await disk.append(target, body, BYTES)
    behind = request("GET", target + "?offset=now") + request("GET", "/healthz")
    for cut in (0, 1, 10, 40, len(behind)):
        wire = await disk.connect(receive_buffer=4096)
        await wire.send_apart(request("GET", target) + behind[:cut], behind[cut:])
        assert (await wire.response()).body == body
        assert (await wire.response()).body == b""
        assert (await wire.response()).body == b'{"status":"ok"}'
        wire.close()


async def test_one_who_asks_and_does_not_read_is_not_answered_without_end(memory: Running) -> None:
    """Answers that a client does not read stay few: beyond the write buffer its requests wait."""
    body = b"x" * 100_000
    target = await memory.create("a", BYTES, body)
    wire = await memory.connect(receive_buffer=4096)
    question = request("GET", target)
    await wire.send(question)
    assert (await wire.response()).body == body
    connection = memory.connection_of(wire)
    loop = asyncio.get_running_loop()
    wanted = 60

    async def ask() -> None:
        for _ in range(wanted):
            await wire.send_apart(question)

    asking = loop.create_task(ask())
    largest = 0
    for _ in range(2000):
        await asyncio.sleep(0)
        largest = max(largest, connection.transport.get_write_buffer_size())
    assert largest > 0
    for _ in range(wanted):
        assert (await wire.response()).body == body
        largest = max(largest, connection.transport.get_write_buffer_size())
    await asking
    assert largest <= memory.hub.limits.write_buffer_bytes_max + 2 * len(body)


# -- heads seen before


async def _warm(hub: Running, *requests: bytes) -> None:
    """Have heads parsed once, each alone in its packet."""
    for data in requests:
        wire = await hub.connect()
        await wire.send(data)
        await wire.response()
        wire.close()


@pytest.mark.parametrize("warm", [False, True], ids=["new heads", "known heads"])
async def test_one_head_with_different_bodies_cut_anywhere(serve: Serve, warm: bool) -> None:
    """Two appends with the same head and a read, cut at every byte of their packet, behave as if never cut,
    whether their heads were seen before or not."""
    hub = await serve()
    target = await hub.create("a")
    first, second = post(target, b"<\r\n\r\n12>"), post(target, b"<GET  2>")
    assert first[:-8] == second[:-8]
    read = request("GET", target + "?offset=now")
    packet = first + second + read
    expected = b""
    if warm:
        await _warm(hub, first, second, read)
        expected = b"<\r\n\r\n12><GET  2>"
    wire = await hub.connect()
    count = 2 if warm else 0
    for cut in range(len(packet)):
        if not warm:
            hub.server.shared.heads.clear()
        await wire.send_apart(packet[:cut], packet[cut:])
        answers = [await wire.response() for _ in range(3)]
        assert [a.status for a in answers] == [204, 204, 200], cut
        assert [position(a) for a in answers] == [count + 1, count + 2, count + 2], cut
        count += 2
        expected += b"<\r\n\r\n12><GET  2>"
    assert wire.is_quiet()
    assert await hub.body_of(target) == expected


async def test_packets_of_three_parts_behave_alike(memory: Running) -> None:
    """The same for every pair of cuts through two appends with known heads."""
    target = await memory.create("a")
    data = f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n".encode()
    await _warm(memory, data + b"0,")
    packet = data + b"1," + data + b"2,"
    wire = await memory.connect()
    count = 1
    for one in range(1, len(packet), 3):
        for two in range(one + 1, len(packet), 7):
            await wire.send_apart(packet[:one], packet[one:two], packet[two:])
            answers = [await wire.response() for _ in range(2)]
            assert [position(a) for a in answers] == [count + 1, count + 2], (one, two)
            count += 2
    assert await memory.body_of(target) == b"0," + b"1,2," * (count // 2)


async def test_a_known_head_with_half_a_body_waits_for_the_rest(memory: Running) -> None:
    """A head that was seen before does not make a body complete that is not."""
    target = await memory.create("a")
    await _warm(memory, post(target, b"first"))
    wire = await memory.connect()
    data = post(target, b"12345")
    await wire.send_apart(data[:-2])
    assert wire.is_quiet()
    await wire.send(data[-2:] + data)
    assert [(await wire.response()).status for _ in range(2)] == [204, 204]
    assert await memory.body_of(target) == b"first1234512345"


async def test_known_heads_of_every_kind_mix_with_chunks_and_waits(disk: Running, gate: Gate) -> None:
    """Known and new heads, chunked bodies, refused requests and waiting appends keep their order in one packet."""
    target = await disk.create("a")
    plain = post(target, b"p,")
    chunks = request("POST", target, {**TEXT, "Transfer-Encoding": "chunked"}) + chunked(b"c", b",")
    refused = post("/v1/stream/none", b"r,")
    read = request("GET", target)
    await _warm(disk, plain, chunks, refused, read)
    wire = await disk.connect()
    for parts in ([plain + chunks + refused + plain + read], [plain, chunks, refused, plain, read]):
        gate.shut()
        sent = asyncio.create_task(wire.send_apart(*parts))
        await gate.reached()
        gate.open()
        await sent
        answers = [await wire.response() for _ in range(5)]
        assert [a.status for a in answers] == [204, 204, 404, 204, 200]
    assert answers[-1].body == b"p,c," + b"p,c,p," * 2


async def test_an_answer_given_before_is_not_given_when_it_is_wrong(memory: Running) -> None:
    """The same request gets a new answer after an append, a close, a deletion and a creation anew."""
    target = await memory.create("a", TEXT, b"one,")
    wire = await memory.connect()

    async def ask() -> Response:
        answers = [await wire.ask("GET", target) for _ in range(3)]
        assert len({(a.status, a.get("ETag"), a.get("Stream-Closed")) for a in answers}) == 1
        assert answers[0].status == 404 or len({a.body for a in answers}) == 1
        return answers[0]

    first = await ask()
    assert first.body == b"one,"
    await memory.append(target, b"two,")
    second = await ask()
    assert second.body == b"one,two,"
    assert second["ETag"] != first["ETag"]
    await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    assert (await ask())["Stream-Closed"] == "true"
    await memory.ask("DELETE", target)
    assert (await ask()).status == 404
    await memory.create("a", TEXT, b"new")
    assert (await ask()).body == b"new"


async def test_a_known_head_means_the_same_on_every_connection(memory: Running) -> None:
    """Connections that share a head do not share what became of it: one may wait while others are answered."""
    target = await memory.create("a")
    poll = request("GET", target, {"Prefer": "wait=20"})
    wires: list[Wire] = [await memory.connect() for _ in range(5)]
    for wire in wires:
        await wire.send(poll)
    await until(lambda: memory.waiters("a") == 5)
    wires[0].reset()
    await until(lambda: memory.waiters("a") == 4)
    await memory.append(target, b"woken")
    for wire in wires[1:]:
        assert (await wire.response()).body == b"woken"
        assert (await wire.ask("GET", target)).body == b"woken"


async def test_a_head_is_forgotten_before_memory_is_full_of_them(memory: Running) -> None:
    """Ever new heads do not grow the memory of heads without end, and heads that change are answered as they are."""
    wire = await memory.connect()
    for number in range(5000):
        await wire.send(request("GET", "/healthz", {"X-Request-Id": str(number)}))
        assert (await wire.response()).status == 200
    assert len(memory.server.shared.heads) < 5000
