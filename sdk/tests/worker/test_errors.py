"""Errors on their way out of a worker."""

import pytest
from anyengine.errors import EngineDied, Overloaded, RequestTimeout
from anyengine.worker.errors import decode_error, encode_error


@pytest.mark.parametrize(
    "error",
    [RequestTimeout("too late"), EngineDied("gone"), Overloaded("full", retry_after=1.5)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_has_all_its_attributes_on_the_other_side(error):
    arrived = decode_error(encode_error(error))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)
