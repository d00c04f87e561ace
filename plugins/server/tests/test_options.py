"""What stands in ``native`` is honoured or refused, and secrets are shown nowhere."""

from __future__ import annotations

import pytest
from anyengine.config import EngineConfig
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine_server import ServerOptions, check_attached, is_attached, server_options


def test_options_are_read_and_the_rest_is_given_back():
    options, rest = server_options({"url": "https://host:8443/tgi/", "token": "t", "read_timeout": 3, "other": 1})
    assert options == ServerOptions(url="https://host:8443/tgi", token="t", read_timeout=3.0)  # noqa: S106 no secret
    assert rest == {"other": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", None),
        ("url", 7),
        ("url", "host:80"),
        ("url", "ftp://host"),
        ("url", "http://"),
        ("url", "http://host:99999"),
        ("url", "http://host?x=1"),
        ("url", "http://user:secret@host"),
        ("token", ""),
        ("token", "two\nlines"),
        ("headers", ["a"]),
        ("headers", {"a": 1}),
        ("headers", {"a": "secret\r\nb: c"}),
        ("connect_timeout", 0),
        ("read_timeout", True),
        ("read_timeout", float("inf")),
        ("served_model", 5),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: object):
    with pytest.raises(InvalidConfig, match=rf"^native\.{name}: ") as caught:
        server_options({"url": "http://host", name: value})
    assert caught.value.field == f"native.{name}"
    assert "secret" not in str(caught.value)


def test_a_token_beside_an_authorization_header_is_refused():
    with pytest.raises(InvalidConfig, match="one of the two"):
        server_options({"url": "http://host", "token": "a", "headers": {"authorization": "b"}})


def test_secrets_are_not_shown():
    assert "secret" not in repr(server_options({"url": "http://host", "token": "secret", "headers": {"k": "secret"}}))


def test_what_only_a_start_can_honour_is_refused():
    assert is_attached(EngineConfig(native={"url": "http://host"}))
    config = EngineConfig(native={"url": "http://host"}, dtype="bfloat16")
    with pytest.raises(UnsupportedParameter, match="runs already") as caught:
        check_attached(config, "tgi")
    assert caught.value.field == "dtype"
    check_attached(EngineConfig(native={"url": "http://host"}, max_model_len=5, startup_timeout=1, model="m"), "tgi")
