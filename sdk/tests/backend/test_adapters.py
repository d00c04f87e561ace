"""What an adapter's own file says of its rank decides whether it is loaded."""

import pytest
from anyengine.backend.adapters import check_adapter_rank
from anyengine.errors import ModelNotFound, UnsupportedParameter


def test_an_adapter_of_at_most_that_rank_is_let_through(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    check_adapter_rank("a", tmp_path, 9)


def test_an_adapter_of_a_higher_rank_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    with pytest.raises(UnsupportedParameter, match=r"its rank is 9, and lora\.max_rank is 8") as caught:
        check_adapter_rank("a", tmp_path, 8)
    assert caught.value.field == "lora.adapters.a"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"r": null}', '{"r": "x"}', '{"r": Infinity}', "\xff"])
def test_an_adapter_that_does_not_say_its_rank_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json cannot be read") as caught:
        check_adapter_rank("a", tmp_path, 8)
    assert caught.value.field == "lora.adapters.a"
