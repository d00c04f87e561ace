"""What an adapter's own file says decides whether it is loaded."""

import pytest
from anyengine import LoRAConfig
from anyengine.backend.adapters import check_adapter_rank, check_adapter_settings, check_adapters_in_one_batch
from anyengine.errors import ModelNotFound, UnsupportedParameter


def test_an_adapter_of_at_most_that_rank_is_let_through(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    check_adapter_rank("a", tmp_path, 9)
    (tmp_path / "adapter_config.json").write_text('{"r": 9, "rank_pattern": {}}')
    check_adapter_rank("a", tmp_path, 9)


def test_an_adapter_of_a_higher_rank_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    with pytest.raises(UnsupportedParameter, match=r"its rank is 9, and lora\.max_rank is 8") as caught:
        check_adapter_rank("a", tmp_path, 8)
    assert caught.value.field == "lora.adapters.a"


def test_a_layer_of_a_higher_rank_counts(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "rank_pattern": {"q_proj": 9, "v_proj": 2}}')
    check_adapter_rank("a", tmp_path, 9)
    with pytest.raises(UnsupportedParameter, match="its rank is 9"):
        check_adapter_rank("a", tmp_path, 8)


@pytest.mark.parametrize("most", [None, 3, 8])
def test_all_adapters_in_one_batch_are_what_is_asked_for(most):
    check_adapters_in_one_batch("Simulated", LoRAConfig(adapters=dict.fromkeys("abc", "x"), max_loras=most))


@pytest.mark.parametrize("most", [1, 2])
def test_fewer_adapters_in_a_batch_are_refused_where_the_engine_knows_no_bound(most):
    with pytest.raises(UnsupportedParameter, match=f"no bound of {most}; give 3 or more") as caught:
        check_adapters_in_one_batch("Simulated", LoRAConfig(adapters=dict.fromkeys("abc", "x"), max_loras=most))
    assert caught.value.field == "lora.max_loras"


@pytest.mark.parametrize(
    ("fields", "most"), [({}, 1), ({"adapters": dict.fromkeys("ab", "x")}, 2), ({"max_loras": 5}, 5)]
)
def test_a_batch_has_room_for_the_adapters_that_are_named(fields, most):
    assert LoRAConfig(**fields).most_in_a_batch == most


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", "{}", '{"r": null}', '{"r": "x"}', '{"r": Infinity}', '{"r": 1, "rank_pattern": [1]}', "\xff"],
)
def test_an_adapter_that_does_not_say_its_rank_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json cannot be read") as caught:
        check_adapter_rank("a", tmp_path, 8)
    assert caught.value.field == "lora.adapters.a"


IGNORED = ("use_rslora", "alpha_pattern", "bias", "layers_to_transform", "modules_to_save")


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"peft_type": "LORA", "use_rslora": false, "alpha_pattern": {}, "bias": "none", "modules_to_save": null}',
        # Nobody asks after it.
        '{"use_dora": true}',
    ],
)
def test_settings_that_say_no_and_those_that_are_honoured_are_let_through(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    check_adapter_settings("Simulated", "a", tmp_path, IGNORED)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"use_rslora": true}', r"Simulated does not honour its use_rslora \(true\)"),
        ('{"alpha_pattern": {"q_proj": 4}}', r'alpha_pattern \(\{"q_proj": 4\}\)'),
        ('{"bias": "lora_only"}', "bias"),
        # The number of the first layer is no "no".
        ('{"layers_to_transform": 0}', "layers_to_transform"),
        ('{"modules_to_save": ["lm_head"]}', "modules_to_save"),
        ('{"peft_type": "LOHA"}', "'LOHA', and Simulated has low-rank adapters only"),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        check_adapter_settings("Simulated", "a", tmp_path, IGNORED)
    assert caught.value.field == "lora.adapters.a"


@pytest.mark.parametrize("content", [None, "{", "[]", "\xff"])
def test_settings_that_cannot_be_read_are_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json cannot be read") as caught:
        check_adapter_settings("Simulated", "a", tmp_path, IGNORED)
    assert caught.value.field == "lora.adapters.a"
