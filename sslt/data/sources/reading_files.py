"""Files of questions about texts: SQuAD's JSON, 1.1 and 2.0 (Rajpurkar et al., 2016, 2018), and CoQA's (Reddy et al., 2019).

SQuAD's may also be flat, a row for each question, as Hugging Face's examples have it: {"data": [{"id", "title", "context", "question",
"answers": {"text": […], "answer_start": […]}}]}; a question with empty lists there has no answer.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt.data.sources.disk import read_text, reading
from sslt.errors import UserError

NEAR = 10  # characters by which an answer's place may be off and is still found
DIALOGUE_WORDS = ("yes", "no", "unknown")  # answers of a dialogue that are no place in its story
_WORD = re.compile(r"\S+")
_SIGNS = " \t\n.,;:!?\"'()[]“”‘’—-"


@dataclasses.dataclass
class Asked:
    """A question. kind: as `Spans.kinds`, by `words` of its format. places: (start, end) in the context to learn from; texts: all answers
    that would do; turn: in a dialogue, from 1; history: its earlier (question, answer), the last one first.

    moved: an answer stood beside its place. problem: why the question cannot be used.
    """

    name: str
    question: str
    context: str
    article: int
    kind: int = -1
    texts: list[str] = dataclasses.field(default_factory=list)
    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    moved: bool = False
    turn: int = 0
    history: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    domain: str = ""
    problem: str = ""


def articles_of(file: Path) -> list[Any]:
    """What stands in `data` of a file. Raises `UserError` where it is no such JSON."""
    with reading(file):
        try:
            found = json.loads(read_text(file))
        except ValueError as e:
            raise UserError(f"{file}: no JSON ({e})") from None
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list) or not articles or not all(isinstance(a, dict) for a in articles):
        raise UserError(f'{file}: not the JSON of SQuAD or CoQA: expected {{"data": [ARTICLE, …]}}')
    return articles


def is_dialogues(articles: list[Any]) -> bool:
    """Whether these are CoQA's stories, and not SQuAD's articles."""
    return "story" in articles[0] or "questions" in articles[0]


def questions_of(articles: list[Any]) -> Iterator[Asked]:
    """All questions, in the order of the file. Of rows of one question each, those of a title or a context are an article."""
    known: dict[Any, int] = {}
    for i, article in enumerate(articles):
        if is_dialogues(articles):
            yield from _of_story(article, i)
        elif "question" in article:
            number = known.setdefault(str(article.get("title") or article.get("context")), len(known))
            yield from _of_article({"paragraphs": [{"context": article.get("context"), "qas": [article]}]}, number)
        else:
            yield from _of_article(article, i)


# -------------------------------------------------------------------- SQuAD
def _of_article(article: dict[str, Any], number: int) -> Iterator[Asked]:
    for paragraph in _dicts(article.get("paragraphs")):
        for qa in _dicts(paragraph.get("qas")):
            name, question, context = (paragraph | qa).get("id"), qa.get("question"), paragraph.get("context")
            asked = Asked(str(name if name is not None else question), str(question), str(context), number)
            if not isinstance(question, str) or not isinstance(context, str) or not context.strip():
                asked.problem = "there is no question" if isinstance(context, str) and context.strip() else "there is no context"
            else:
                asked.problem = _answer(asked, qa)
            yield asked


def _answer(asked: Asked, qa: dict[str, Any]) -> str:
    """Add the answers of `qa`; what is wrong with them."""
    if qa.get("is_impossible"):
        asked.kind = 1
        return ""
    answers = qa.get("answers")
    if isinstance(answers, dict):  # a column of each, as tables have them
        columns = (answers.get("text"), answers.get("answer_start"))
        if not all(isinstance(c, list) for c in columns) or len(columns[0] or ()) != len(columns[1] or ()):
            return 'the answers are no {"text": […], "answer_start": […]} of equal length'
        answers = [{"text": t, "answer_start": s} for t, s in zip(*columns, strict=True)]  # type: ignore[arg-type]
    if answers == []:  # SQuAD's own script takes that for a question without an answer, whatever is_impossible says
        asked.kind = 1
    if not answers:  # without the key, a question to be answered
        return ""
    if not isinstance(answers, list) or not all(isinstance(a, dict) and isinstance(a.get("text"), str) for a in answers):
        return 'the answers are no list of {"text": …, "answer_start": …}'
    asked.kind, asked.texts = 0, [a["text"] for a in answers]
    counts = Counter(a["text"] for a in answers)
    for answer in sorted(answers, key=lambda a: -counts[a["text"]]):
        text, start = answer["text"], answer.get("answer_start", -1)
        if isinstance(start, bool) or not isinstance(start, int):
            return f"answer_start {start!r} is no number"
        if start < 0 or answer.get("ambiguous") or not text.strip():  # no place is given, or which of several is not known
            continue
        found = _near(asked.context, text, start)
        if found is None:
            elsewhere = asked.context.find(text)
            place = f" (it is at {elsewhere})" if elsewhere >= 0 else ""
            return f"the answer '{text[:60]}' is not in its context at character {start}{place}"
        asked.moved |= found != start
        if (found, found + len(text)) not in asked.places:
            asked.places.append((found, found + len(text)))
    words = [place for place in asked.places if _begins_word(asked.context, place[0])]
    asked.places = words or asked.places  # "10" in "2010" is where it was found first, and not what was meant
    return ""


def _near(context: str, text: str, start: int) -> int | None:
    """Where `text` begins in `context`, at most `NEAR` characters from `start`; None where it does not."""
    if context.startswith(text, start):
        return start
    places = (start + sign * off for off in range(1, NEAR + 1) for sign in (-1, 1))
    return next((p for p in places if p >= 0 and context.startswith(text, p)), None)


def _begins_word(context: str, start: int) -> bool:
    """Whether a word may begin there: in scripts that put spaces between words, not after a letter or digit."""
    a, b = context[start - 1 : start], context[start]
    return not (a.isalnum() and b.isalnum() and ord(a) < 0xE00 and ord(b) < 0xE00)


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [d for d in found if isinstance(d, dict)] if isinstance(found, list) else []


# -------------------------------------------------------------------- CoQA
def _of_story(story: dict[str, Any], number: int) -> Iterator[Asked]:
    """A dialogue's turns. The first answer is the one that later questions refer to; `additional_answers` are others'."""
    context, name = str(story.get("story") or ""), str(story.get("id", number))
    first, others = _dicts(story.get("answers")), story.get("additional_answers") or {}
    columns = [first, *(_dicts(rows) for rows in (others.values() if isinstance(others, dict) else []))]
    history: list[tuple[str, str]] = []
    for i, turn in enumerate(_dicts(story.get("questions"))):
        question = turn.get("input_text")
        asked = Asked(f"{name}, turn {i + 1}", str(question), context, number, turn=i + 1, domain=str(story.get("source", "")))
        asked.history = list(history)
        if not isinstance(question, str) or not context.strip():
            asked.problem = "there is no question" if context.strip() else "there is no story"
        elif first:
            asked.problem = _answer_turn(asked, turn, columns, i)
        yield asked
        history.insert(0, (asked.question, asked.texts[0] if asked.texts else ""))


def _answer_turn(asked: Asked, turn: dict[str, Any], columns: list[list[dict[str, Any]]], i: int) -> str:
    if any(len(rows) <= i or not isinstance(rows[i].get("input_text"), str) for rows in columns):
        return "a question without an answer"
    if len(numbers := {str(row["turn_id"]) for row in (turn, *(rows[i] for rows in columns)) if "turn_id" in row}) > 1:
        return f"answers of other turns stand in its place (turn_id {', '.join(sorted(numbers))})"
    answer = columns[0][i]
    asked.texts = [rows[i]["input_text"] for rows in columns]
    bare = asked.texts[0].strip(_SIGNS).lower()
    start, end = (answer.get(k, -1) for k in ("span_start", "span_end"))
    if bare in DIALOGUE_WORDS:
        asked.kind = 1 + DIALOGUE_WORDS.index(bare)
    elif not (isinstance(start, int) and isinstance(end, int)) or start < 0:
        asked.kind = 0  # an answer in one's own words: nothing to learn from, but it counts
    elif not start < end <= len(asked.context):
        return f"span_start {start} and span_end {end} are no place in a story of {len(asked.context)} characters"
    else:
        asked.kind, asked.places = 0, [closest(asked.context, asked.texts[0], start, end)]
    return ""


def closest(context: str, answer: str, start: int, end: int) -> tuple[int, int]:
    """The words of context[start:end] closest to a free answer by F1, the first and shortest of equals (Reddy et al., 2019, 5.2)."""
    found = context.lower().find(answer.strip().lower(), start, end) if answer.strip() and len(context.lower()) == len(context) else -1
    if found >= 0:
        return found, found + len(answer.strip())
    wanted = Counter(w.strip(_SIGNS).lower() for w in answer.split())
    words = [(m.start(), m.end()) for m in _WORD.finditer(context, start, end)] or [(start, end)]
    best, score = words[0], -1.0
    for i in range(len(words)):
        have: Counter[str] = Counter()
        for j in range(i, min(len(words), i + 3 * sum(wanted.values()) + 3)):
            have[context[words[j][0] : words[j][1]].strip(_SIGNS).lower()] += 1
            f1 = 2 * sum((have & wanted).values()) / (j - i + 1 + sum(wanted.values()))
            if f1 > score:
                best, score = (words[i][0], words[j][1]), f1
    return _bare(context, *best) if score > 0 else _bare(context, start, end)


def _bare(context: str, start: int, end: int) -> tuple[int, int]:
    """Without the signs around it, unless there is nothing else."""
    text = context[start:end]
    left, right = len(text) - len(text.lstrip(_SIGNS)), len(text) - len(text.rstrip(_SIGNS))
    return (start + left, end - right) if left + right < len(text) else (start, end)
