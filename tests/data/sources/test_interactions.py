"""Protects who took what: every layout gives the same histories in the order of time, and nothing of test is anywhere but in test."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sslt.config import check_arguments
from sslt.data.answers import Item
from sslt.data.prepare.item_processor import ItemProcessor
from sslt.data.sources.aisles import Aisles
from sslt.data.sources.interactions import Interactions, MovieLens, Video
from sslt.errors import UserError

EVERY = {"path", "target_path", "language", "layout", "sep", "header", "answer", "separator", "on_error", "val_fraction", "test_fraction",
         "min_user", "min_item", "hold_out"}  # fmt: skip
HISTORIES = {"ann": ["a", "b", "c", "d", "e"], "bob": ["b", "c", "z"], "cy": ["a", "q"], "dee": ["c", "a", "b", "a"]}
# by time, users mixed; the rows of a table come in another order
EVENTS = sorted((100 * i + u, user, item) for u, (user, items) in enumerate(HISTORIES.items()) for i, item in enumerate(items))


def source(path: Path, layout: str = "auto", hold_out: bool = True, **given) -> Interactions:
    settings = {"user": None, "item": None, "time": None, "min_user": None, "min_item": None, "on_error": "fail"} | given
    return Interactions(str(path), layout, hold_out=hold_out, **settings)


def written(folder: Path, name: str) -> Path:
    """The histories in one of the layouts."""
    mixed = [EVENTS[i] for i in np.random.default_rng(0).permutation(len(EVENTS))]
    rows = {
        "log.csv": ["rating,userId,movieId,timestamp", *(f"5,{u},{i},{t}" for t, u, i in mixed)],
        "days.tsv": ["user\titem\tdate", *(f"{u}\t{i}\t2020-01-01T00:{t // 60:02d}:{t % 60:02d}Z" for t, u, i in mixed)],
        "log.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *(f"{u}\t{i}\t3\t{t}" for t, u, i in mixed)],
        "lines.txt": [f"{u} {i}" for _, u, i in EVENTS],
        "words.txt": [" ".join(items) for items in HISTORIES.values()],
        "named.txt": [" ".join([user, *items]) for user, items in HISTORIES.items()],
    }[name]
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


@pytest.fixture
def log(tmp_path) -> Path:
    return written(tmp_path, "log.csv")


def rows(found, split: str) -> dict[str, tuple[tuple[str, ...], str | None]]:
    """By user: history, and what comes next."""
    raw = found.get(split)
    answers = [None] * len(raw) if raw.answers is None else [raw.answers.items[i] for i in raw.answers.values]
    names = found.row_names(split)
    return {name: (raw.items[i], answers[i]) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", ["log.csv", "days.tsv", "log.inter", "lines.txt", "words.txt", "named.txt"])
def test_every_layout_gives_the_same_histories(name, here):
    """Rows of tables are put in the order of time, lines are in it."""
    found = source(written(here, name), "user_sequences" if name == "named.txt" else "auto", hold_out=False)
    assert sorted(found.get("unlabeled").items) == sorted(tuple(items) for items in HISTORIES.values())
    if name != "words.txt":
        assert {user: list(row[0]) for user, row in rows(found, "unlabeled").items()} == HISTORIES


def test_columns_by_name_or_number_and_equal_times_in_the_file_s_order(here):
    (here / "u.data").write_text("7\tx\t1\t50\n7\ty\t1\t50\n7\tw\t1\t49\n")
    found = source(here / "u.data", "table", False, user="0", item="1", time="3")
    assert list(found.get("unlabeled").items) == [("w", "x", "y")]
    (here / "own.csv").write_text("who,what,when\n1,x,2\n1,y,1\n")
    assert list(source(here / "own.csv", "auto", False, user="who", item="what", time="when").get("unlabeled").items) == [("y", "x")]


def test_a_table_without_a_header_is_not_taken_for_sequences(here):
    """MovieLens's u.data would be a hundred thousand histories of four items; with columns it is a table, whatever its suffix."""
    (here / "u.data").write_text("".join(f"{u}\t{i}\t3\t{i}\n" for u in range(5) for i in range(7)))
    with pytest.raises(UserError, match=r"u\.data: all lines have 4 fields: give the columns of a table, data\.user=0"):
        source(here / "u.data").get("train")
    assert set(source(here / "u.data", hold_out=False, user="0", item="1", time="3").get("unlabeled").items) == {tuple("0123456")}
    typed = {"user": 0, "item": 1, "time": 3}  # as a command line has them
    for target, columns in {
        "interactions.Interactions": typed, "texts.TextTable": {"text": 1, "label": 0}, "pairs.TextPairs": {"a": 0, "b": 1, "label": 2},
        "text_to_text.TextToText": {"source": 1, "target": 0},
    }.items():  # fmt: skip
        check_arguments("data", f"sslt.data.sources.{target}", columns, EVERY)
    assert set(source(here / "u.data", hold_out=False, **typed).get("unlabeled").items) == {tuple("0123456")}
    assert len(source(here / "u.data", "sequences", hold_out=False).get("unlabeled")) == 35
    with pytest.raises(UserError, match=r"data\.item= is a column of a table, and data\.layout=pairs has none"):
        source(here / "u.data", "pairs", item="1")


@pytest.mark.parametrize("between", [" ", "  ", "::"])
def test_tables_between_blanks_and_colons(here, between):
    """Every field is one, as in MovieLens's ratings.dat: an item's name holds no rating."""
    events = [("1", "b", "5", "20"), ("1", "a", "4", "10"), ("2", "c", "3", "30")]
    (here / "ratings.dat").write_text("\n".join(between.join(event) for event in events) + "\n")
    found = source(here / "ratings.dat", hold_out=False, user="0", item="1", time="3")
    assert sorted(found.get("unlabeled").items) == [("a", "b"), ("c",)]


def test_dates_without_a_zone_are_in_order_wherever_they_are_read(here, monkeypatch):
    """Where clocks are put back there are two of an hour, and the second would be taken for the first."""
    (here / "log.csv").write_text("user,item,time\n1,c,2021-10-31 01:50:00Z\n1,b,2021-10-31 01:40:00\n1,a,2021-10-31 01:30:00Z\n")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert list(source(here / "log.csv", hold_out=False).get("unlabeled").items) == [("a", "b", "c")]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_last_item_is_tested_and_the_one_before_chooses(log, here):
    """The history of test holds the item of val; who has fewer than three items is learned from alone."""
    found = source(log)
    test, val, train, free = (rows(found, split) for split in ("test", "val", "train", "unlabeled"))
    assert test == {u: (tuple(h[:-1]), h[-1]) for u, h in HISTORIES.items() if len(h) > 2}
    assert val == {u: (tuple(h[:-2]), h[-2]) for u, h in HISTORIES.items() if len(h) > 2}
    kept = {u: h if len(h) < 3 else h[:-2] for u, h in HISTORIES.items()}
    assert train == {u: (tuple(h[:-1]), h[-1]) for u, h in kept.items()}
    assert free == {u: (tuple(h), None) for u, h in kept.items()}
    assert len({int(c) for split in ("train", "val", "test") for c in found.get(split).contents}) == 4 + 3 + 3  # nobody is a copy


def test_nothing_of_test_or_val_is_learned_from(log, here):
    """Items that only they have are in no vocabulary, and are told of."""
    found = source(log)
    assert set(ItemProcessor.fit(found, 10).items) == {"a", "b", "c", "q"}
    again = "log: 1 of 3 test items are ones that the user had before: they are ranked, and written with objective.seen=keep alone"
    assert found.get("test").remarks == ["log: 2 of 3 test items were never seen in training: they count as missed", again]
    assert found.get("val").remarks == ["log: 1 of 3 val items were never seen in training: they count as missed"]
    assert found.get("train").remarks == ["log: 1 of 4 users have fewer than 3 items: not tested"]


def test_cores_are_left_again_and_again(log, here):
    """Item z leaves bob with two rows, who then leaves too, and so on until nothing changes."""
    found = source(log, hold_out=False, min_user=3, min_item=2)
    assert {u: list(row[0]) for u, row in rows(found, "unlabeled").items()} == {"ann": ["a", "b", "c"], "dee": ["c", "a", "b", "a"]}
    with pytest.raises(UserError, match=r"data\.min_user=9 and data\.min_item=1 leave nothing"):
        source(log, min_user=9).get("train")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "user,item,time\n1,2,3\n1,,3\n", r"a\.csv, line 3: no item"),
        ("a.csv", "user,item,time\n1,2,soon\n", r"a\.csv, line 2: 'soon' is no time"),
        ("a.csv", "user,item,time\n1,2\n", r"a\.csv, line 2: 2 fields where there should be 3"),
        ("a.csv", "client,item\n1,2\n", r"which column is the user\? Give data\.user="),
        ("a.txt", "", r"a\.txt: empty file"),
        ("a.inter", "user_id:token\titem_id:token\n", r"nobody takes anything"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(name, text, says, here):
    (here / name).write_text(text)
    with pytest.raises(UserError, match=says):
        source(here / name).get("train")


def test_bad_rows_can_be_left_out_and_nobody_to_test_is_refused(here):
    (here / "a.csv").write_text("user,item\n1,2\n,5\n1,4\n")
    found = source(here / "a.csv", on_error="skip")
    assert len(found.get("train").skipped) == 1 and found.get("train").items[0] == ("2",)
    with pytest.raises(UserError, match=r"no user has at least 3 items"):
        found.get("test")
    with pytest.raises(UserError, match=r"data\.layout=tabel: give .*did you mean"):
        source(here / "a.csv", "tabel")
    (here / "pairs.txt").write_text("1 2\n1 3 4\n")
    with pytest.raises(UserError, match=r"pairs\.txt, line 2: 3 fields where there should be 2"):
        source(here / "pairs.txt", "pairs").get("train")


def test_made_up_shoppers_are_the_same_every_time():
    a, b = (Aisles(50, 4, 5, 0) for _ in range(2))
    assert list(a.get("test").items) == list(b.get("test").items) and isinstance(a.get("val").answers, Item)
    assert min(len(h) for h in a.get("test").items) >= 3 and Aisles(50, 4, 5, 1).log.rows[0].tolist() != a.log.rows[0].tolist()


@pytest.mark.parametrize(
    ("kind", "users", "items", "rows"), [(Video, 31_013, 23_715, 287_107), (MovieLens, 943, 1_682, 100_000)], ids=["video", "movielens"]
)
def test_as_they_are_distributed(kind, users, items, rows, here):
    if not (root := os.environ.get("SSLT_DATA")) or not Path(root).is_dir():
        pytest.skip("needs the data")
    found = kind(root, None, None)
    assert (len(found.log.users), len(found.log.items), int(found.log.rows.sizes.sum())) == (users, items, rows)
    with pytest.raises(UserError, match="get it from"):
        kind(str(here), None, None)
