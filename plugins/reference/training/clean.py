"""What of the teacher's text is kept: whole, plain, unrepeated sentences."""

import re

PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-", "\u2013": "-", "\u2026": "..."}
)
BAD = re.compile(
    r"[^\x20-\x7e\n]|[*#_<>\[\]{}|\\/=~^@+%$]|\b\d{3,}|\b(?:smollm|hugging face|language model|as an ai|ai|assistant|"
    r"chatbot|subject|title|script|the story is|this story|in conclusion|et al|sentences?|sex\w*|kill\w*|murder\w*|"
    r"gun|guns|blood\w*|wine|beer|drunk|hell|damn|stupid|suicide|nazi\w*|slave\w*|weapon\w*)\b",
    re.IGNORECASE,
)
SENTENCE = re.compile(r'(?<=[.!?])"?\s+')
END = re.compile(r'[.!?]"?$')


def join(opening: str, text: str) -> str:
    """Put the given first words and the teacher's continuation together with one space where words meet."""
    text = text.translate(PLAIN)
    if text[:1].isspace() or text[:1] in ",.!?;:'":
        return opening + text
    return f"{opening} {text}"


def tidy(text: str) -> str:
    """Normalize white space: single spaces, paragraphs parted by one empty line."""
    text = re.sub(r"[ \t]+", " ", text.translate(PLAIN))
    text = re.sub(r" *\n[ \n]*", "\n\n", text)
    return text.strip()


def sentences(text: str) -> list[str]:
    """Split text into sentences, roughly."""
    return [part for part in SENTENCE.split(text) if part]


def trim(text: str) -> str:
    """Cut off what follows the last whole sentence."""
    cut = max((match.end() for match in re.finditer(r'[.!?]"?(?=\s|$)', text)), default=0)
    return text[:cut]


def repeats(text: str) -> bool:
    """Whether the text repeats itself: the same sentence twice, or many word sequences more than once."""
    lowered = [re.sub(r"[^a-z' ]", "", part.lower()).strip() for part in sentences(text)]
    long = [part for part in lowered if part.count(" ") >= 2]
    if len(set(long)) < len(long):
        return True
    words = re.findall(r"[a-z']+", text.lower())
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(fours) > 8 and len(set(fours)) < 0.93 * len(fours):
        return True
    if re.search(r"\b(\w+)(?:\W+\1\b){2}", text.lower()):  # one word three times in a row
        return True
    return len(words) > 30 and len(set(words)) < 0.42 * len(words)


def balanced(text: str) -> bool:
    """Whether every paragraph closes the quotation marks that it opens."""
    return all(paragraph.count('"') % 2 == 0 for paragraph in text.split("\n\n"))


def clean_start(text: str, *, ended: bool) -> str:
    """Return a story, or an unfinished story cut to whole sentences; empty if it is not worth keeping."""
    text = tidy(text)
    if not ended:
        text = trim(text)
    words = text.count(" ")
    if not 30 <= words <= 260 or BAD.search(text) or not END.search(text) or not balanced(text) or repeats(text):
        return ""
    return text


def clean_ending(start: str, text: str) -> str:
    """Return the whole story with the first two sentences of its last paragraph; empty if it is not worth keeping."""
    body, _, lead = start.rpartition("\n\n")
    last = tidy(join(lead, text)).split("\n\n")[0]
    last = " ".join(sentences_kept(trim(last))[:2])
    if len(last.split()) < 6:
        return ""
    return clean_start(f"{body}\n\n{last}", ended=True)


def sentences_kept(text: str) -> list[str]:
    """Split text into sentences that keep their closing quotation marks."""
    return re.findall(r'\S.*?[.!?]"?(?=\s|$)', text)


def clean_answer(text: str) -> str:
    """Return an answer of at most three sentences; empty if it is not worth keeping."""
    text = tidy(text)
    if not 1 <= text.count(" ") <= 60 or "\n" in text or BAD.search(text) or not END.search(text) or not balanced(text):
        return ""
    if len(sentences(text)) > 3 or repeats(text) or not text[0].isupper():
        return ""
    return text
