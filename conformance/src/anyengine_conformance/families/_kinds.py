"""Prompts of several kinds, for parity and batching; `tools/calibrate_parity.py` measures on the same ones."""

from __future__ import annotations

from anyengine_conformance.context import PROMPTS

__all__ = [
    "CALIBRATION",
    "CHATS",
    "CODE",
    "DISTINCT",
    "ENDINGS",
    "LONG",
    "MULTILINGUAL",
    "PLAIN",
    "QUANTISED",
    "REPETITIVE",
    "SHORT_CHAT",
]

PLAIN = PROMPTS
#: Behind which a model may well end by itself.
ENDINGS = (
    "It was a good day. They all went home and were happy. The end.",
    "She said good night, and then the lights went out. The end.",
    *PLAIN[:2],
)
CODE = (
    'def greet(name):\n    """Say hello."""\n    return',
    '{"name": "Tom", "age": 7, "pets": ["cat", "dog"], "friends": [{"name":',
    "for i in range(10):\n    print(i)\nfor i in range(20):\n    print(",
)
MULTILINGUAL = (
    "Es war einmal ein kleines Mädchen, das am Meer lebte. Eines Tages",
    "Il était une fois une petite fille qui vivait près de la mer. Un jour,",
    "昔々、海の近くに小さな女の子が住んでいました。",
    "Жила-была девочка, и была у неё собака.",  # noqa: RUF001 Russian
    "🙂🙃 Zoë said: naïve café 🐈‍⬛",
)
CHATS = (
    ({"role": "user", "content": "Tell me about a cat."},),
    (
        {"role": "user", "content": "What is your name?"},
        {"role": "assistant", "content": "My name is Tom."},
        {"role": "user", "content": "Tell me a story about a dog and a boat."},
    ),
)
#: Answered in a few tokens by a model that was taught to answer.
SHORT_CHAT = ({"role": "user", "content": "Answer with one word: is water wet?"},)
#: Some 400 tokens of the built-in model: many blocks, and several pieces of a chunked prefill.
LONG = " ".join(
    f"{name} had {number} {thing}s and gave {less} of them to {friend}."
    for number, (name, thing, less, friend) in enumerate(
        [
            ("Tom", "apple", "two", "Anna"),
            ("Anna", "book", "one", "Ben"),
            ("Ben", "ball", "three", "the dog"),
            ("Lucy", "flower", "four", "her mother"),
            ("The old man", "coin", "five", "the children"),
            ("Mia", "shell", "six", "her friend"),
            ("Sam", "stone", "seven", "the river"),
            ("The teacher", "pencil", "eight", "the class"),
        ]
        * 3,
        start=9,
    )
)
#: What a draft looks up in its own past.
REPETITIVE = (
    "The cat sat on the mat. The dog sat on the mat. The cat sat on the mat. The dog sat on the mat. The cat sat on",
    "One day Tom saw a big red ball. One day Anna saw a big red ball. One day Ben saw a big red ball. One day",
    "I like apples and I like pears. I like apples and I like plums. I like apples and I like",
)
#: 32 prompts, each about something of its own.
DISTINCT = tuple(
    f"{name} the {animal} lived in a {place}. Every day {name} wanted to find the {thing}. One morning"
    for name, animal, place, thing in zip(
        ("Tim", "Sue", "Max", "Lily", "Bob", "Mia", "Sam", "Amy") * 4,
        ("cat", "dog", "bird", "fish") * 8,
        [place for place in ("forest", "house", "boat", "garden") for _ in range(8)],
        ("ball", "cake", "key", "star", "hat", "book", "shell", "drum") * 4,
        strict=True,
    )
)
#: What rounding is measured on, in ``tools/calibrate_parity.py`` and on a subject's own model.
CALIBRATION = (*PLAIN, *CODE, *MULTILINGUAL, LONG, *REPETITIVE, *DISTINCT[:24])
#: Texts to be scored, of the kinds above.
QUANTISED = (
    *(
        f"{prompt} {end}"
        for prompt, end in zip(
            PLAIN,
            (
                "found a big shell and took it home to show it to her mother.",
                "a small cat that sat under a tree. The cat looked at him and ran away.",
                "the sun came out, and they ran into the garden to play with the ball.",
                "runs to the park with him. They are very happy together.",
            ),
            strict=True,
        )
    ),
    MULTILINGUAL[0],
    CODE[2],
    LONG[:600],
)
