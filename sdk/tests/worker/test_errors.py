"""Errors on their way out of a worker."""

import numpy as np
import pytest
from anyengine.errors import EngineDied, Overloaded, RequestTimeout
from anyengine.worker.errors import decode_error, encode_error
from anyengine.worker.protocol import Error, FrameReader, frame


@pytest.mark.parametrize(
    "error",
    [RequestTimeout("too late"), EngineDied("gone"), Overloaded("full", retry_after=1.5)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_has_all_its_attributes_on_the_other_side(error):
    arrived = decode_error(encode_error(error))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


def test_an_error_arrives_whatever_is_in_it():
    error = Overloaded("no file b\udcff", retry_after=np.float32(1.5), engine="e\ud800")
    error.tries, error.seen, error.size = np.int64(3), [object, "\udcff"], 2**70
    error.add_note("of b\udcff")
    error.__cause__ = OSError("b\udcff")
    (message,) = FrameReader(FrameReader.ANSWERS).feed(frame([Error(1, encode_error(error))]))
    arrived = decode_error(message.error)
    assert (arrived.message, arrived.retry_after, arrived.engine) == ("no file b\\udcff", 1.5, "e\\ud800")
    assert (arrived.tries, arrived.seen, arrived.size) == (3, [str(object), "\\udcff"], str(2**70))
    assert arrived.__notes__ == ["of b\\udcff"]
    assert "OSError: b\\udcff" in str(arrived.__cause__)


def test_a_partial_of_foreign_values_costs_its_error_nothing():
    error = RequestTimeout("too late")
    facts = encode_error(error) | {"partial": {"text": 5}}
    assert decode_error(facts).partial is None
