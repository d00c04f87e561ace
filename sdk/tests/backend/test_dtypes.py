import pytest
from anyengine.backend.dtypes import own_dtype


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        # As transformers reads them where they differ.
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float32", "text_config": {"dtype": "bfloat16"}}, "float32"),
        ({"text_config": None}, None),
        ({"llm_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"thinker_config": {"text_config": {"dtype": "bfloat16"}}}, "bfloat16"),
        ({"dtype": 7}, None),
    ],
)
def test_the_type_of_a_checkpoint_is_what_its_configuration_says(config, expected):
    assert own_dtype(config) == expected
