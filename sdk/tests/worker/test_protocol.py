"""The protocol from raw bytes, as ``docs/worker-protocol.md`` says it; nothing of the SDK's codec is used here."""

import contextlib
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "worker-protocol.md").read_text(encoding="utf-8")


def pack(value):
    """Msgpack, as its specification has it, of what is needed here."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        return struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
    return struct.pack(">BI", 0xDF, len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())


FIXED = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
SIZED = {0xD9: (str, ">B"), 0xDA: (str, ">H"), 0xDB: (str, ">I"), 0xDC: (list, ">H"), 0xDD: (list, ">I"),
         0xDE: (dict, ">H"), 0xDF: (dict, ">I")}  # fmt: skip


class Unpacker:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def value(self):  # noqa: PLR0911 one for each form
        first = self.take(">B")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in FIXED:
            return self.take(FIXED[first])
        if first in SIZED:
            kind, form = SIZED[first]
            return self.many(kind, self.take(form))
        if first < 0x90:
            return self.many(dict, first & 0x0F)
        if first < 0xA0:
            return self.many(list, first & 0x0F)
        return self.many(str, first & 0x1F)

    def many(self, kind, count):
        if kind is str:
            self.at += count
            return self.data[self.at - count : self.at].decode()
        if kind is list:
            return [self.value() for _ in range(count)]
        return {self.value(): self.value() for _ in range(count)}


class Wire:
    """One end of a channel."""

    def __init__(self, end):
        end.settimeout(20)
        self.end, self.waiting = end, []

    def send(self, *messages):
        body = pack(list(messages))
        self.end.sendall(struct.pack(">I", len(body)) + body)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.end.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def frame(self):
        (length,) = struct.unpack(">I", self.exactly(4))
        unpacker = Unpacker(self.exactly(length))
        messages = unpacker.value()
        assert unpacker.at == length
        return messages

    def receive(self):
        while not self.waiting:
            self.waiting = self.frame()
        return self.waiting.pop(0)

    def call(self, id_, method, **arguments):
        self.send({"type": "call", "id": id_, "method": method, "arguments": arguments})

    def answer(self, id_, method, **arguments):
        self.call(id_, method, **arguments)
        message = self.receive()
        assert message["id"] == id_
        return message


@contextlib.contextmanager
def started(python):
    """A worker without a supervisor, and the two channels to it."""
    pairs = [socket.socketpair(), socket.socketpair()]
    theirs = [pair[1] for pair in pairs]
    numbers = [str(end.fileno()) for end in theirs]
    command = [str(python), "-P", "-m", "anyengine.worker", "--serve", *numbers, str(os.getpid())]
    with subprocess.Popen(command, pass_fds=[end.fileno() for end in theirs]) as process:
        for end in theirs:
            end.close()
        try:
            yield Wire(pairs[0][0]), Wire(pairs[1][0])
        finally:
            for pair in pairs:
                pair[0].close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@pytest.fixture
def wire(python):
    """The requests channel of a worker that has loaded the engine ``slow``."""
    with started(python) as (requests, _):
        assert requests.receive()["protocol"] == [2, 0]
        requests.send({"type": "hello", "protocol": [2, 0], "sdk": "raw bytes"})
        loaded = requests.answer(1, "load", engine="slow", config={"max_model_len": 64})
        assert loaded["value"]["info"]["max_model_len"] == 64
        assert loaded["value"]["model"]["name"] == "scripted"
        yield requests


def test_the_worker_greets_first_and_beats(python):
    with started(python) as (requests, control):
        hello = requests.receive()
        assert set(hello) == {"type", "protocol", "sdk", "python", "pid"}
        assert (hello["type"], hello["protocol"]) == ("hello", [2, 0])
        for _ in range(2):
            beat = control.receive()
            assert (beat["type"], beat.get("unanswered", 0.0), beat.get("stopped", [])) == ("heartbeat", 0.0, [])


def test_another_major_version_is_hung_up_on(python):
    with started(python) as (requests, _):
        requests.receive()
        requests.send({"type": "hello", "protocol": [3, 0], "sdk": "future"})
        with pytest.raises(EOFError):
            requests.receive()


@pytest.mark.parametrize("junk", [b"\x00\x00\x00\x02\xc1\xc1", b"\xff\xff\xff\xff", struct.pack(">I", 1) + b"\x05"])
def test_what_is_no_frame_is_answered_once_and_hung_up_on(python, junk):
    with started(python) as (requests, _):
        requests.receive()
        requests.end.sendall(junk)
        message = requests.receive()
        assert (message["type"], message.get("id", 0), message["error"]["type"]) == ("error", 0, "InvalidRequest")
        with pytest.raises(EOFError):
            requests.receive()


def test_a_generation(wire):
    assert wire.answer(2, "prepare", request={"prompt": "hi", "max_tokens": 5}) == {
        "type": "result",
        "id": 2,
        "value": None,
    }
    first = wire.answer(3, "run", prepared=2)["value"]
    assert (first["text"], first["token_ids"], first["finish_reason"]) == ("hello", [71, 68, 75, 75, 78], "length")
    assert wire.answer(4, "run", prepared=2)["value"]["text"] == "hello"
    wire.call(0, "forget", prepared=2)
    assert wire.answer(5, "run", prepared=2)["error"]["type"] == "PluginError"


def test_a_generation_in_one_call(wire):
    request = {"prompt": "hi", "max_tokens": 5}
    assert wire.answer(2, "generate", request=request)["value"]["text"] == "hello"
    refused = wire.answer(3, "generate", request=request | {"novelty": 1})["error"]
    assert (refused["type"], refused["field"]) == ("UnsupportedParameter", "novelty")


def test_many_messages_share_frames_of_a_few(wire):
    """So that the application reads the first answers while the worker makes the others."""
    many = range(2, 102)
    wire.send(*({"type": "call", "id": id_, "method": "detokenize", "arguments": {"token_ids": [71]}} for id_ in many))
    sizes: list[int] = []
    answered: list[int] = []
    while len(answered) < len(many):
        frame = wire.frame()
        sizes.append(len(frame))
        answered += [message["id"] for message in frame]
    assert sorted(answered) == list(many)
    assert max(sizes) == 16


def test_a_stream_begins_when_it_is_read_and_ends_once(wire):
    assert wire.answer(2, "open", request={"prompt": "hi", "max_tokens": 5, "logprobs": 0})["type"] == "result"
    assert wire.answer(3, "stats")["value"].get("running", 0) == 0
    wire.call(0, "read", stream=2)
    items = []
    while (message := wire.receive())["type"] == "chunks":
        items += message["items"]
    assert message == {"type": "end", "id": 2}
    assert {item[0] for item in items} == {2}
    assert {item[1] for item in items} == {0}
    assert "".join(item[2] for item in items) == "hello"
    assert [token for item in items for token in item[3]] == [71, 68, 75, 75, 78]
    assert [entry["token_id"] for item in items for entry in item[4]] == [71, 68, 75, 75, 78]
    assert [item[5] is None for item in items] == [True] * (len(items) - 1) + [False]
    assert items[-1][5]["reason"] == "length"


def test_a_stream_that_is_cancelled_says_so_and_is_over(wire):
    wire.answer(2, "open", request={"prompt": "hi", "ignore_eos": True})
    wire.call(0, "read", stream=2)
    assert wire.receive()["type"] == "chunks"
    wire.send({"type": "cancel", "id": 2})
    while (message := wire.receive())["type"] == "chunks":
        pass
    assert message == {"type": "cancelled", "id": 2}
    assert wire.answer(3, "stats")["value"].get("running", 0) == 0
    wire.send({"type": "cancel", "id": 2}, {"type": "cancel", "id": 77})  # too late: no answer
    assert wire.answer(4, "health") == {"type": "result", "id": 4, "value": None}


def test_a_call_that_is_cancelled_says_so(wire):
    wire.call(3, "generate", request={"prompt": "hi"})
    wire.send({"type": "cancel", "id": 3})
    assert wire.receive() == {"type": "cancelled", "id": 3}
    assert wire.answer(4, "stats")["value"].get("running", 0) == 0


def test_errors_have_their_type_and_facts(wire):
    refused = wire.answer(2, "prepare", request={"prompt": "hi", "sampling": {"top_k": -1}})["error"]
    assert (refused["type"], refused["field"], refused["misuse"]) == ("InvalidRequest", "sampling.top_k", True)
    unknown = wire.answer(3, "prepare", request={"prompt": "hi", "novelty": 1})["error"]
    assert (unknown["type"], unknown["field"]) == ("UnsupportedParameter", "novelty")
    assert wire.answer(4, "dance")["error"]["field"] == "method"
    assert wire.answer(5, "sleep")["error"]["capability"] == "sleep"
    assert wire.answer(6, "load", engine="slow", config={})["error"]["type"] == "InvalidConfig"


def test_closing_and_hanging_up_ends_the_worker(python):
    with started(python) as (requests, control):
        requests.receive()
        requests.answer(1, "load", engine="hello", config={})
        assert requests.answer(2, "close")["type"] == "result"
        assert requests.answer(3, "stats")["error"]["type"] == "EngineClosed"
        requests.end.close()
        beats = iter(control.receive, None)
        with pytest.raises((EOFError, ConnectionError)):
            list(beats)


def test_the_page_names_every_method_and_every_message():
    from anyengine.worker import protocol
    from anyengine.worker.session import METHODS

    _, _, methods = PAGE.partition("## Methods")
    rows = [line.split("|")[1] for line in methods.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == METHODS | {"read"}
    rows = [line.split("|")[1] for line in PAGE.partition("## Methods")[0].splitlines() if line.startswith("| `")]
    tags = {struct.__struct_config__.tag for struct in vars(protocol).values() if hasattr(struct, "__struct_config__")}
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == tags - {None, "_message"}
