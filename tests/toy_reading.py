"""Small files in the formats of SQuAD, CMRC 2018 and CoQA, about who lives where."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NAMES = ("Ada", "Grace", "Alan", "Kurt", "Emmy", "Sofia", "Carl", "Paul")
TOWNS = ("Paris", "Rome", "Oslo", "Bern", "Kyiv", "Lima", "Turin", "Delft")


def qa(name: str, question: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    return {"id": name, "question": question, "answers": [{"text": t, "answer_start": s} for t, s in answers], **more}


def article(title: str, context: str, *qas: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "paragraphs": [{"context": context, "qas": list(qas)}]}


def write(file: Path, articles: list[dict[str, Any]], version: str = "1.1") -> Path:
    file.write_text(json.dumps({"version": version, "data": articles}, ensure_ascii=False), encoding="utf-8")
    return file


def squad(file: Path, n: int = 24, impossible: bool = False, answers: bool = True) -> Path:
    """n articles of one context with two questions each, of which one may be without an answer."""
    draw, made = random.Random(0), []
    for i in range(n):
        people, towns = draw.sample(NAMES, 3), draw.sample(TOWNS, 3)
        context = " ".join(f"In those days {p} lived in {t}." for p, t in zip(people, towns, strict=True))
        qas = [qa(f"q{i}.{k}", f"Where did {p} live?", (t, context.index(t)), is_impossible=False)
               for k, (p, t) in enumerate(zip(people[:2], towns[:2], strict=True))]  # fmt: skip
        if impossible:
            missing = next(p for p in NAMES if p not in people)
            qas[1] = qa(f"q{i}.1", f"Where did {missing} live?", is_impossible=True)
        if not answers:
            qas = [{k: v for k, v in q.items() if k not in ("answers", "is_impossible")} for q in qas]
        made.append(article(f"article {i}", context, *qas))
    return write(file, made, "v2.0" if impossible else "1.1")


def turn(i: int, text: str, start: int = -1, end: int = -1, span: str = "") -> dict[str, Any]:
    return {"turn_id": i, "input_text": text, "span_start": start, "span_end": end, "span_text": span}


def coqa(file: Path, n: int = 16, additional: bool = False, answers: bool = True) -> Path:
    """n stories of two people, three questions about each: where, whether, and one that the story does not answer."""
    draw, stories = random.Random(1), []
    for i in range(n):
        people, towns = draw.sample(NAMES, 2), draw.sample(TOWNS, 2)
        story = " ".join(f"{p} lived in {t}, by the river." for p, t in zip(people, towns, strict=True))
        questions: list[dict[str, Any]] = []
        replies: list[dict[str, Any]] = []
        for p, t in zip(people, towns, strict=True):
            at, end = story.index(p), story.index(".", story.index(p)) + 1
            said = [(f"Where did {p} live?", turn(0, f"in {t}", at, end, story[at:end])),
                    ("Was it by a river?", turn(0, "Yes", at, end, story[at:end])),
                    ("When?", turn(0, "unknown", -1, -1, "unknown"))]  # fmt: skip
            for question, reply in said:
                questions.append({"turn_id": len(questions) + 1, "input_text": question})
                replies.append({**reply, "turn_id": len(replies) + 1})
        made: dict[str, Any] = {"source": ("mctest", "cnn")[i % 2], "id": f"s{i}", "story": story, "questions": questions}
        if answers:
            made["answers"] = replies
        if additional:
            made["additional_answers"] = {
                str(k): [{**r, "input_text": r["input_text"].replace("in ", "")} for r in replies] for k in range(2)
            }
        stories.append(made)
    file.write_text(json.dumps({"version": "1.0", "data": stories}), encoding="utf-8")
    return file
