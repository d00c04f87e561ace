"""What the teacher is asked: seeded random combinations of words, each with a few hand-written examples before it."""

import random
from dataclasses import dataclass

import words

from examples import DIALOGS, STORIES

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
STORY_LEAD = "Write a short and simple story for small children about "
TIMES = ("hot summer day", "cold winter night", "sunny day", "rainy day", "dark night")
CALLS = ("Look", "Come here", "Help", "Where are you", "Good morning", "Wait for me")
FAVORITES = ("animal", "color", "food", "story", "season", "game", "book", "place")
ANSWER_LEAD = "Answer in one or two short and simple sentences. "


@dataclass(frozen=True)
class Prompt:
    """One request to the teacher.

    Attributes:
        kind: "story" or "chat".
        text: The whole prompt, ready for the engine.
        subject: What a reader would ask for: the story's subject, or the user's question.
        opening: The first words of the answer, given to the teacher; they belong to the result.
        history: Earlier turns of the chat as (question, answer).
    """

    kind: str
    text: str
    subject: str
    opening: str = ""
    history: tuple[tuple[str, str], ...] = ()


def article(phrase: str) -> str:
    """Return the phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def turns(pairs: list[tuple[str, str]]) -> str:
    """Write question-answer pairs in the teacher's chat format."""
    return "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in pairs
    )


def chat(pairs: list[tuple[str, str]], question: str, opening: str = "") -> str:
    """Write a whole prompt in the teacher's chat format that asks for the answer to `question`."""
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    return f"{head}{turns(pairs)}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{opening}"


def story(rng: random.Random) -> Prompt:
    """Ask for one story; its opening is given so that stories differ from the first words on."""
    name, trait = rng.choice(words.NAMES), rng.choice(words.TRAITS)
    kind = rng.choice(words.ANIMALS if rng.random() < 0.5 else words.PEOPLE)
    place, event = rng.choice(words.PLACES), rng.choice(words.EVENTS)
    thing = f"{rng.choice(words.COLORS)} {rng.choice(words.OBJECTS)}"
    who = f"{article(f'{trait} {kind}')} named {name}"
    subject = (
        rng.choice(
            (
                f"{who}, {article(thing)} and {article(place)}",
                f"{who} who {event}",
                f"{who} who finds {article(thing)}",
                f"{article(kind)} named {name} who lives in {article(place)} and {event}",
                f"{article(trait)} {kind} and {article(thing)}",
                f"{name} the {kind} and {article(rng.choice(words.ANIMALS))}",
                f"{name} and {rng.choice(words.NAMES)}, who play in the {place}",
            )
        )
        .replace("a a ", "a ")
        .replace("a an ", "an ")
    )
    opening = rng.choice(
        (
            f"Once upon a time, there was {who}.",
            f"Once upon a time, there was {article(f'{trait} {kind}')} who",
            f"Once upon a time, {name} the {kind}",
            f"Once upon a time, in {article(place)}, there lived {who}.",
            f"Once there was {who}.",
            f"One day, {name} the {kind}",
            f"{name} was {article(f'{trait} {kind}')} who",
            f"{name} was {article(f'{trait} {kind}')}.",
            f"{article(f'{trait} {kind}').capitalize()} named {name} lived in {article(place)}.",
            f"In {article(place)} there lived {who}.",
            f"One {rng.choice(('sunny', 'cold', 'rainy', 'warm', 'windy'))} morning, {name}",
            f"It was {article(rng.choice(TIMES))}.",
            f'"{rng.choice(CALLS)}!" said {name}',
            f"Every day, {name} the {kind}",
            f"Long ago, {who}",
            f"There was once {who}.",
            f"The {kind} was {trait}",
            f"{name} had {article(thing)}.",
        )
    )
    about, text = rng.choice(STORIES)
    pairs = [(f"{STORY_LEAD}{about}.", text)]
    return Prompt("story", chat(pairs, f"{STORY_LEAD}{subject}.", opening), subject, opening)


def question(rng: random.Random) -> str:
    """Draw what a user could ask."""
    animal, thing, stuff = rng.choice(words.ANIMALS), rng.choice(words.THINGS), rng.choice(words.STUFF)
    noun = rng.choice(words.ANIMALS + words.THINGS + words.OBJECTS + words.JOBS)
    one = article(noun)
    forms = (
        (4, f"What is {one}?"),
        (2, f"What is {stuff}?"),
        (2, f"Tell me about {rng.choice((one, stuff))}."),
        (1, f"What does {article(animal)} eat?"),
        (1, f"Where does {article(animal)} live?"),
        (1, f"What sound does {article(animal)} make?"),
        (2, f"What do you do with {article(rng.choice(words.OBJECTS))}?"),
        (1, f"What color is {article(thing)}?"),
        (2, f"What does {article(rng.choice(words.JOBS))} do?"),
        (2, f"Why do people like {stuff}?"),
        (2, f"How do I make {rng.choice(words.FOODS)}?"),
        (3, f"How can I {rng.choice(words.ACTIVITIES)}?"),
        (3, f"Why should I {rng.choice(words.HABITS)}?"),
        (2, f"What can I do when I am {rng.choice(words.FEELINGS)}?"),
        (2, f"I am {rng.choice(words.FEELINGS)}."),
        (2, f"Name {rng.choice(('two', 'three', 'some'))} {rng.choice(words.CATEGORIES)}."),
        (
            2,
            f"Do you like {rng.choice((stuff, article(noun) + 's'))}?".replace("like a ", "like ").replace(
                "like an ", "like "
            ),
        ),
        (
            1,
            f"What is your favorite {rng.choice(FAVORITES)}?",
        ),
        (1, f"What is the opposite of {rng.choice(words.OPPOSITES)}?"),
        (1, f"What is the capital of {rng.choice(words.COUNTRIES)}?"),
        (2, f"Write a sentence about {rng.choice((one, stuff))}."),
        (2, f"Where can I find {one}?"),
        (2, f"Is {one} {rng.choice(('big', 'small', 'useful', 'old', 'dangerous', 'friendly', 'heavy'))}?"),
        (1, f"What is the difference between {article(animal)} and {article(rng.choice(words.ANIMALS))}?"),
        (6, rng.choice(words.GREETINGS)),
    )
    return rng.choices([text for _, text in forms], [weight for weight, _ in forms])[0]


def dialog(rng: random.Random) -> Prompt:
    """Ask for the answer to one question."""
    return answer_to(rng, question(rng), ())


def follow_up(rng: random.Random, first: tuple[str, str]) -> Prompt:
    """Ask for the second answer of a chat whose first turn is known."""
    return answer_to(rng, rng.choice(words.FOLLOW_UPS), (first,))


def answer_to(rng: random.Random, asked: str, history: tuple[tuple[str, str], ...]) -> Prompt:
    """Ask for an answer in the tone of the examples."""
    shown = random.Random(rng.randrange(16)).sample(DIALOGS, 4)  # noqa: S311  few choices: the engine caches them
    pairs = [(f"{ANSWER_LEAD}{text}", reply) for text, reply in (*shown, *history)]
    return Prompt("chat", chat(pairs, f"{ANSWER_LEAD}{asked}", ""), asked, "", history)
