"""Turn WordNet's glosses into questions and answers: the sentences that the demo model learns.

WordNet's files are described in its manual page wndb(5). The glossary is ours: a name, a tab, and what it is.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPECIAL = ("<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
BOS, EOS, PAD, SYSTEM, USER, ASSISTANT = SPECIAL
DETERMINERS = re.compile(
    "(a|an|the|any|one|some|each|either|all|both|several|various|two|three|four|many|most|no|not|someone"
    "|something|anything|anyone|that|what|how|when|where|whatever|whoever|being|having)$"
)
SUBSTANCE = r"\b(compound|element|alloy|metal|mineral|liquid|gas|mixture|acid)\b"
# The lexicographer files of nouns that one counts: animal, artifact, body, object, person, plant.
COUNTED = {"05", "06", "08", "17", "18", "20"}
MASS = re.compile(r"(ness|ity|ism|ing|ics|logy|graphy|ship|hood|ence|ance|ery|music|love|money)$")
QUESTIONS = {
    "n": ["What is {a}?"] * 8
    + ["What is {x}?"] * 3
    + ["What's {a}?", "What are {xs}?", "Can you tell me what {a} is?", "Tell me about {a}."]
    + ["Explain what {a} is.", "Do you know what {a} is?", "Describe {a}.", "What is the meaning of {x}?"]
    + ["What do you call {a}?"],
    "v": ["What does it mean to {x}?"] * 4
    + ["What is to {x}?", 'What does "to {x}" mean?', "How do you {x}?"],
    "a": ["What does it mean to be {x}?", "What is {x}?"],
    "r": ["What does it mean to do something {x}?", "What is {x}?"],
}
# Forms that do not tell a noun from a verb: asked only of the most frequent sense of a word.
ANY = [
    "Define {x}.",
    "What does {x} mean?",
    'What does "{x}" mean?',
    "Define {x}",
    "{x}",
    "{x}:",
    "{x}?",
    "Explain {x}.",
]
SYSTEMS = [
    "You are a helpful assistant.",
    "You are a dictionary.",
    "Be brief.",
    "Answer the question.",
    "Be concise.",
]


@dataclass(frozen=True)
class Entry:
    word: str
    kind: str  # one of "n", "v", "a", "r"
    answer: str  # a whole sentence, which names the word
    plain: str  # the same without the word: "It is ..."
    counted: bool  # takes an article
    main: bool  # the most frequent sense of the word over all kinds
    weight: float  # how often it is drawn
    synset: str  # words of one synset share their gloss


def article(text: str) -> str:
    first = text.lower()
    if re.match(r"(hour|honest|honor|heir|honour)", first):
        return "an"
    vowel = re.match(r"[aeiou]", first) and not re.match(
        r"(uni(?!n|m)|us[aeiu]|eu|ur[aeiou]|one\b|once|ut[aei])", first
    )
    return "an" if vowel else "a"


def plural(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def clean(gloss: str) -> tuple[str, str]:
    """The definition in a gloss, and the field of knowledge it names, or ""."""
    gloss = re.sub(r'["`].*', "", gloss).strip(" ;:,.")
    gloss = re.sub(r"\s*\((?:e\.g\.|i\.e\.|especially|usually|trade|plural|or|as)\b[^()]*\)", "", gloss)
    field = ""
    if found := re.match(r"\(([^()]*)\)\s*", gloss):
        field, gloss = found[1], gloss[found.end() :]
    parts = [part.removeprefix("to ").strip(" :,.") for part in re.split(r";\s*|(?<=\w{4}):\s", gloss)]
    text = parts[0] if len(parts[0].split()) > 2 or len(parts) == 1 else ", ".join(parts[:2])
    text = re.sub(r"\s*\([^()]*\)", "", text) if len(text.split()) > 20 else re.sub(r"[()]", "", text)
    return re.sub(r"\s+", " ", text).strip(" ;:,."), field if re.fullmatch(r"[a-z]+( [a-z]+)?", field) else ""


def noun_sentences(word: str, text: str, file: str) -> tuple[str, str, bool]:
    words = text.split()
    proper = word != word.lower()
    ends = r"\b(?:of|that|which|who|with|in|for|from|having|used|on|by|to|and|or|as|at|made)\b|,"
    head = re.split(ends, text)[0]  # what comes before tells the number
    if re.match(r"(state|condition|form|type|kind|part|piece|unit|set|group|feeling|amount) ", text):
        text = "a " + text if words[0] != "amount" else "an " + text
    elif file == "27" and re.search(SUBSTANCE, head):
        text = text if DETERMINERS.match(words[0]) else f"{article(text)} {text}"
    words = text.split()
    many = bool(re.search(r"[^sui]s$", head.strip())) and words[0] not in {"a", "an", "the", "one", "any"}
    if not DETERMINERS.match(words[0]) and not many and not words[0].endswith("ing"):
        if re.search(r"est$", words[0]) or words[0] in {"first", "last", "main"}:
            text = "the " + text
        elif file in COUNTED and not proper:
            text = f"{article(text)} {text}"
    counted = file in COUNTED or (
        file != "27" and text.split()[0] in {"a", "an", "one"} and not MASS.search(word)
    )
    counted = counted and not proper and not many and not re.search(r"[^sui]s$", word)
    name = f"{article(word)} {word}" if counted else word
    verb = "are" if many and re.search(r"[^sui]s$", word) else "is"
    plain = text if proper and file == "18" else f"{'they' if verb == 'are' else 'it'} {verb} {text}"
    return f"{name} {verb} {text}", plain, counted


def read_uses(folder: Path) -> dict[tuple[str, str], list[int]]:
    """How often each sense of a (word, kind) was met in texts."""
    counts: dict[tuple[str, str], list[int]] = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        sense_key, sense, count = line.split()
        word, rest = sense_key.split("%")
        uses = counts.setdefault((word, "_nvara"[int(rest[0])]), [])
        uses.extend([0] * (int(sense) - len(uses)))
        uses[int(sense) - 1] = int(count)
    return counts


def read_senses(folder: Path) -> dict[tuple[str, str], list[str]]:
    """The synsets of each (word, kind), the most frequent sense first."""
    senses: dict[tuple[str, str], list[str]] = {}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"index.{name}").read_text().splitlines():
            if not line.startswith(" "):
                columns = line.split()
                senses[columns[0], columns[1]] = columns[-int(columns[2]) :]
    return senses


def read_wordnet(folder: Path) -> Iterator[Entry]:
    """Every sense of every word, without the families and genera of animals and plants."""
    counts, senses = read_uses(folder), read_senses(folder)
    total = {key: sum(counts.get(key, [])) + 0.1 / (1 + "nvar".index(key[1])) for key in senses}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text().splitlines():
            if line.startswith(" "):
                continue  # the licence
            data, gloss = line.split(" | ", 1)
            columns = data.split()
            kind = columns[2].replace("s", "a")
            lemmas = [re.sub(r"\(.*", "", columns[4 + 2 * i]) for i in range(int(columns[3], 16))]
            text, field = clean(gloss)
            if any(lemma.startswith(("genus_", "family_")) for lemma in lemmas):
                continue
            if not 2 <= len(text.split()) <= 28 or "comparative" in text:
                continue
            for lemma in lemmas:
                key = (lemma.lower(), kind)
                sense, uses = senses[key].index(columns[0]), counts.get(key, [])
                used = uses[sense] if sense < len(uses) else 0
                main = sense == 0 and total[key] >= max(total.get((key[0], other), 0) for other in "nvar")
                word = lemma.replace("_", " ")
                # A word that people use is asked for more often than one that only a dictionary knows.
                weight = (2 + 2 * math.log2(1 + used) if used else 0.6) if sense == 0 else 0.05
                weight *= 1.0 if kind == "n" else 0.3
                weight *= 0.4 if word != word.lower() or re.search(r"\d", word) else 1.0
                weight *= 0.4 if " " in word and not used else 1.0
                counted = False
                if kind == "n":
                    answer, plain, counted = noun_sentences(word, text, columns[1])
                    if field:
                        answer, plain = f"in {field}, {answer}", f"in {field}, {plain}"
                elif kind == "v":
                    answer, plain = f"to {word} is to {text}", f"it means to {text}"
                else:
                    answer, plain = f"{word} means {text}", f"it means {text}"
                answer, plain = upper_first(answer) + ".", upper_first(plain) + "."
                yield Entry(word, kind, answer, plain, counted, main, weight, kind + columns[0])


def read_glossary(path: Path) -> Iterator[Entry]:
    for line in path.read_text().splitlines():
        name, text = line.split("\t")
        found = re.match(r"(an?|the) (.*)", name)
        word = found[2] if found else name
        counted = bool(found) and not name.startswith("the ")
        answer, plain = f"{upper_first(name)} is {text}.", f"It is {text}."
        yield Entry(word, "n", answer, plain, counted, True, 120, "")


def exchange(entry: Entry, rng: random.Random) -> tuple[str, str]:
    """A question, and the answer to it.

    The answer repeats the word where a small model can copy it token by token: as typed, after a space.
    """
    forms = QUESTIONS[entry.kind] + (ANY if entry.main else [])
    if entry.main and entry.kind in "ar":
        forms = ANY + forms
    form, word = rng.choice(forms), entry.word
    case = rng.random()
    if case < 0.2:
        word = word.title()
    elif case < 0.23:
        word = word.upper()
    elif case < 0.26:
        word = word.lower()
    a = f"{article(word)} {word}" if entry.counted else word
    text = form.format(x=word, a=a, xs=plural(word) if entry.counted else word)
    if rng.random() < 0.1:
        text, word = text.lower(), word.lower()
    if rng.random() < 0.08:
        text = text.rstrip("?.")
    if not form.startswith("{") and rng.random() < 0.9:
        text = upper_first(text)
    if entry.kind in "ar" or (entry.kind == "n" and not entry.counted) or f" {word}" not in text:
        return text, entry.plain
    return text, entry.answer.replace(entry.word, word, 1)


def sample(entry: Entry, other: Entry, rng: random.Random) -> tuple[str, str]:
    """A prompt, and the answer the model has to learn."""
    text, answer = exchange(entry, rng)
    kind = rng.random()
    if kind < 0.06:
        return BOS, entry.answer
    if kind < 0.8:
        return BOS + text + rng.choice([""] * 19 + ["\n"]), "\n" + answer
    system = SYSTEM + rng.choice(SYSTEMS) if rng.random() < 0.25 else ""
    past = ""
    if rng.random() < 0.12:
        before = exchange(other, rng)
        past = f"{USER}{before[0]}{ASSISTANT}{before[1]}{EOS}"
    return f"{BOS}{system}{past}{USER}{text}{ASSISTANT}\n", answer
