"""What language models, readers, writers and recommenders give: docs/results/text.md, made cell by cell and resumable.

    python scripts/text.py --data DIR [--only imdb,video] [--seeds 3] [--root FOLDER]

Each cell is a pretraining, where it has one, and the command that measures it, in run folders below --root. What was measured is kept in
--kept, so that a cell that is finished is not run again. The document is written from that file after every section.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cells import Cells, about, fill, folder, percent


class Row(NamedTuple):
    """A line of a table: a pretraining (empty: none) and what is measured after it by `verb`, from the run that there is.

    BAG in either's settings is the run of the section's `bag`.
    """

    name: str
    pretrain: list[str]
    verb: str
    args: list[str]


class Section(NamedTuple):
    """metrics: columns of the table, without a `test/` before them. baseline: the metric by which the cheap method is known ("": it differs
    by the row)."""

    title: str
    rows: list[Row]
    metrics: list[str]
    baseline: str
    note: str
    bag: tuple[str, ...] = ()  # a pretraining of a bag of words that rows start with


def imdb(minutes: int) -> list[Row]:
    """Every way to learn from text, for the same time, then a linear probe of 500 labels."""
    time, probe = f"trainer.max_time=00:{minutes:02}:00", ["data=imdb", "labels_per_class=250"]
    tasks = ("crops", "mlm", "electra", "causal_lm batch_size=32", "t5_spans batch_size=32", "tsdae")
    return [
        Row(f"+task={task}", [*f"+task={task}".split(), "data=imdb", time, "online_probe.every_n_epochs=0"], "evaluate", probe)
        for task in tasks
    ]


def items(data: str, minutes: int, few: int, *own: str) -> list[Row]:
    """Recommenders, pretrained and measured as they are; beside item-kNN; and of `few` % of the users."""
    time, short = (f"trainer.max_time=00:{m:02}:00" for m in (minutes, max(minutes // 2, 1)))
    target, share = ["+target=next_item", f"data={data}", *own], f"label_fraction={few / 100}"
    sasrec = ["+task=sasrec", f"data={data}", time, *own]
    return [
        Row("SASRec", sasrec, "evaluate", target),
        Row("BERT4Rec", ["+task=bert4rec", f"data={data}", time, *own], "evaluate", target),
        Row("SASRec and item-kNN, weighed on validation", [], "finetune", [*target, "from=scratch", time]),
        Row(f"the same with {few} % of the users, from scratch", [], "finetune", [*target, "from=scratch", share, short]),
        Row(f"the same with {few} % of the users, after SASRec on all histories", sasrec, "finetune", [*target, share, short]),
    ]


def words(minutes: int) -> list[Row]:
    """A small transformer with and without a bag's words: probes of 500 labels, and fine-tuning with them."""
    time, probe = f"trainer.max_time=00:{minutes:02}:00", ["data=imdb", "labels_per_class=250", "baseline=false"]
    whole = ["encoder=bert_tiny", "windows=all"]
    bert = [*whole, "data=imdb", "online_probe.every_n_epochs=0"]
    tune = ["+target=imdb", "from=scratch", *whole, *probe[1:], "late_fusion=false"]
    first = ["+task=mlm", *bert, "word_vectors=BAG", "trainer.max_steps=1"]
    return [
        Row("the bag itself, probe", [], "evaluate", ["from=BAG", *probe]),
        Row("with its words, after one step, probe", first, "evaluate", probe),
        Row("with its words, fine-tuned", [], "finetune", [*tune, "word_vectors=BAG"]),
        Row("fresh words, fine-tuned", [], "finetune", tune),
        Row("with its words, by crops, probe", ["+task=crops", *bert, "word_vectors=BAG", time], "evaluate", probe),
        Row("with its words, distilled from it, probe", ["+task=distill", *bert, "objective.teacher=BAG", time], "evaluate", probe),
        Row("with its words, by masked words, probe", ["+task=mlm", *bert, "word_vectors=BAG", time], "evaluate", probe),
    ]


def prompts(minutes: int) -> list[Row]:
    """Language models of long reviews asked about sentences: without a label, with 16 examples, tuned on 16 labels of a class."""
    learn = ["data=imdb", f"trainer.max_time=00:{minutes:02}:00", "online_probe.every_n_epochs=0"]
    words = "objective.words={positive:[great,good],negative:[bad,terrible]}"
    ask = ["+target=prompt", "data=sentences", "data.name=mr", words]
    zero, few = [*ask, "objective.calibrate=empty"], [*ask, "labels_per_class=16"]
    masked, bag = ["+task=mlm", *learn], ["+task=mlm", *learn, "encoder=bert_tiny", "windows=all", "word_vectors=BAG"]
    causal = ["+task=causal_lm", *learn, "encoder.processor.max_length=512"]
    shown = [*zero, "objective.shots=16"]
    return [
        Row("masked words, no label", masked, "evaluate", zero),
        Row("masked words, tuned on 16 labels a class", masked, "finetune", few),
        Row("masked words with a bag's vectors, no label", bag, "evaluate", zero),
        Row("masked words with a bag's vectors, tuned on 16 labels a class", bag, "finetune", few),
        Row("next word, no label", causal, "evaluate", zero),
        Row("next word, 16 examples before each text", causal, "evaluate", shown),
        Row("next word, tuned on 16 labels a class", causal, "finetune", few),
    ]


RANKED = ["ndcg@10", "hr@10", "item-knn/ndcg@10", "popularity/ndcg@10"]
BAG_OF_IMDB = ("+task=crops", "data=imdb", "trainer.max_time=00:03:00", "online_probe.every_n_epochs=0")
SECTIONS = {
    "imdb": Section(
        "IMDB: which pretraining pays within minutes", imdb(3), ["linear/accuracy", "untrained/linear/accuracy"], "accuracy",
        "Linear probe with 500 labels on the test split, after three minutes of pretraining on all texts but those of validation and test. "
        "Baseline: TF-IDF with the same 500 labels. Three minutes of one core teach a bag of words by crops what these labels need; "
        "transformers have hardly begun, and some end a little below where they started."),
    "words": Section(
        "IMDB: a transformer that starts with a bag's words", words(5), ["linear/accuracy", "test/accuracy"], "accuracy",
        "500 labels, whole reviews in windows of 128 tokens, a transformer of 1.5 million parameters. It is about as good as its words "
        "before it has learned anything; fine-tuned, validation prefers the start to all that follows. Crops, or the bag as its teacher, "
        "keep what it began with, and masked words take it away. With fresh words the probe of the same network has 58 (above; it reads "
        "the first 128 tokens there).",
        BAG_OF_IMDB),
    "prompts": Section(
        "IMDB's language models asked about sentences", prompts(5), ["accuracy", "baseline/accuracy"], "",
        "Sentences of film reviews (MR), after five minutes on IMDB: `It was great`, `good`, or `bad`, `terrible`. Without a label: "
        "calibrated by an empty text. Baseline: the strongest cheap method with the labels that are tuned on, or with all where none is. "
        "Five minutes of one core teach a transformer no language that could answer: without a label all are at chance. Only what starts "
        "with a bag's words makes something of 16 labels.",
        BAG_OF_IMDB),
    "video": Section(
        "Amazon video: the next of 23,715 items", items("video", 5, 5), RANKED, "ndcg@10",
        "Full ranking, leave one out, seen items excluded, ties against us. Beside each: popularity and item-kNN of the same users. "
        "In this time a transformer alone is behind item-kNN; with it, it is ahead of it."),
    "movielens": Section(
        "MovieLens-100k: the next of 1,682 films", items("movielens", 2, 20, "batch_size=32"), RANKED, "ndcg@10",
        "As above. Batches of 32, as there are 943 users."),
    "multi30k": Section(
        "Multi30k, English to German", [
            Row("all pairs, from scratch", [], "finetune", ["+target=translate", "from=scratch", "trainer.max_time=00:15:00"]),
            Row("all pairs, after BART on both sides", ["+task=bart", "data=multi30k", "trainer.max_time=00:10:00"], "finetune",
                ["+target=translate", "trainer.max_time=00:15:00"]),
            Row("10 % of the pairs, from scratch", [], "finetune",
                ["+target=translate", "from=scratch", "label_fraction=0.1", "trainer.max_time=00:05:00"]),
            Row("10 % of the pairs, after BART on both sides", ["+task=bart", "data=multi30k", "trainer.max_time=00:10:00"], "finetune",
                ["+target=translate", "label_fraction=0.1", "trainer.max_time=00:05:00"]),
        ], ["bleu", "chrf"], "bleu", "BLEU and chrF of test2016 as sacrebleu has them. Baseline: a dictionary "
        "word by word (IBM model 1). BART with norms after its blocks (encoder=bart_tiny, the recipe's until 2026-11-27) learned to "
        "ignore what it reads; translation from it was stopped after a fifth of its time at 0.7 on validation (fresh weights: 27)."),
    "squad": Section(
        "SQuAD 1.1, 36 articles to learn from", [
            Row("from scratch", [], "finetune", ["+target=squad", "from=scratch", "trainer.max_time=00:08:00"]),
            Row("after MLM on its texts", ["+task=mlm", "data=squad", "trainer.max_time=00:05:00"], "finetune",
                ["+target=squad", "trainer.max_time=00:08:00"]),
        ], ["f1", "exact_match"], "f1", "Eight articles are tested on. Baseline: the sentence or the rare words nearest to the "
        "question. Five minutes of masked words on one core do not help the reader."),
    "scitldr": Section(
        "SciTLDR", [
            Row("by default", [], "finetune", ["+target=summarize", "from=scratch", "trainer.max_time=00:08:00"]),
            Row("what the encoder writes", [], "finetune",
                ["+target=summarize", "from=scratch", "late_fusion=false", "trainer.max_time=00:08:00"]),
        ], ["rougeL"], "rougeL", "Baseline: the sentence of the abstract that a linear model picks (the first one has 25.0). From "
        "scratch, in this time, an encoder writes nothing as near; so validation has picked sentences answer by default."),
    "gutenberg": Section(
        "Language models of 17 books", [
            Row("GPT, byte-level words", ["+task=causal_lm", "data=text_files", "data.path=${oc.env:SSLT_DATA}/gutenberg",
                                          "data.on_error=skip", "trainer.max_time=00:05:00"], "evaluate", []),
        ], ["eval/perplexity", "eval/bits_per_byte", "bigrams/perplexity"], "perplexity",
        "On the last 5 % of the text; bigrams of the same words stand beside it. With batches of 32 rows instead of 8 the network "
        "was behind them in this time (305)."),
}  # fmt: skip


def measure(cells: Cells, name: str, seed: int) -> None:
    """All cells of a section with a seed."""

    def bag(setting: str) -> str:
        if not setting.endswith("=BAG"):
            return setting
        first = next(other for other, of in SECTIONS.items() if of.bag == SECTIONS[name].bag)  # which sections may share
        return setting.replace("BAG", str(cells.run(folder(f"{first}-{seed}-bag"), "pretrain", *SECTIONS[name].bag, f"seed={seed}")))

    for row in SECTIONS[name].rows:
        cell = f"{name}-{seed}-{row.name}"

        def start(row: Row = row) -> str:
            first = next(r.name for r in SECTIONS[name].rows if r.pretrain == row.pretrain)  # which rows may share
            settings = [bag(setting) for setting in row.pretrain]
            return f"from={cells.run(folder(f'{name}-{seed}-{first}-pretrain'), 'pretrain', *settings, f'seed={seed}')}"

        settings = [partial(bag, setting) for setting in row.args]  # asked for where the cell is not known yet
        cells.measure(cell, row.verb, *settings, *([start] if row.pretrain else []), f"seed={seed}")


def section(cells: Cells, name: str) -> list[str]:
    """What is known of a section, as a table."""
    of = SECTIONS[name]
    keys = [m if "/" in m else f"test/{m}" for m in of.metrics]
    rows = [f"| | {' | '.join(of.metrics)} |", "|---" * (len(keys) + 1) + "|"]
    measured = lambda row, key: cells.values(f"{name}-[0-9]-{re.escape(row.name)}", key)  # noqa: E731
    base = next((v for row in of.rows if of.baseline and (v := measured(row, f"baseline/{of.baseline}"))), [])
    for row in of.rows:
        found = [measured(row, key) for key in keys]
        if any(found):
            rows.append(f"| {row.name} | {' | '.join(_written(k, v) for k, v in zip(keys, found, strict=True))} |")
    told = [f"The cheap method has {_written(of.baseline, base)} ({of.baseline})."] if base else []
    row = of.rows[-1]
    commands = [f"`sslt pretrain {' '.join(row.pretrain)}`"] if row.pretrain else []
    commands += [f"`sslt {row.verb} {' '.join([*row.args, *(['from=RUN'] if row.pretrain else [])])}`"]
    if any(setting.endswith("=BAG") for setting in (*row.pretrain, *row.args)):
        commands = [f"BAG by `sslt pretrain {' '.join(of.bag)}`", *commands]
    return [f"## {of.title}", "", "The last row: " + ", then ".join(commands), "", of.note, *told, "", *rows, ""]


def _written(key: str, values: list[float]) -> str:
    if "per" in key.rpartition("/")[2]:  # perplexity, bits per byte: no shares
        return percent([v / 100 for v in values])
    return percent(values)


HOW = """# Language models, readers, writers, recommenders

Made by `python scripts/text.py --data DIR`; {about}.
Every cell is a command with its defaults but for the time it may take, which the script gives. Mean ± 95 % interval (Student's t) over
seeds, where there are several. The last weights are reported, on the test split, read once. Numbers are percentages, but for perplexity
and bits a byte.
"""


def write(cells: Cells, out: Path) -> None:
    """The document, of all that is measured."""
    measured = [name for name in SECTIONS if any(cell.startswith(f"{name}-") for cell in cells.found)]
    (out / "text.md").write_text("\n".join([HOW.format(about=about()), *(line for name in measured for line in section(cells, name))]))


if __name__ == "__main__":
    fill(__doc__, "text", SECTIONS, measure, write)
