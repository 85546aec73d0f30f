"""Protects how splits are drawn: in class proportions, disjoint, the same every time, errors in plain words."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.data.answers import Class
from sslt.data.base import Raw, Samples, Source, stratified
from sslt.data.streams.subsets import label_rows
from sslt.errors import UserError

LABELS = np.repeat([0, 1, 2], [100, 50, 10])[np.random.default_rng(0).permutation(160)]


# -------------------------------------------------------------------- stratified
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.33, 1.0])
def test_fraction_keeps_proportions(fraction):
    """round(fraction · N) rows in all, each class within one row of its share, indices sorted and different."""
    index = stratified(LABELS, fraction=fraction)
    assert len(index) == round(fraction * len(LABELS)) and (np.diff(index) > 0).all()
    counts = np.bincount(LABELS[index], minlength=3)
    assert (np.abs(counts - fraction * np.array([100, 50, 10])) < 1).all()


def test_sizes_are_apportioned_by_largest_remainder():
    """Five classes of 5 at one tenth: half a row each, two or three in all, not none and not five."""
    labels = np.repeat(np.arange(5), 5)
    assert len(stratified(labels, fraction=0.1, at_least=0)) == round(2.5)
    assert len(stratified(np.repeat([0, 1, 2], [6, 3, 1]), fraction=0.5, at_least=0)) == 5


def test_at_least():
    """A rare class still has a row to learn from; a held-out split may go without."""
    labels = np.repeat([0, 1], [199, 1])
    assert np.bincount(labels[stratified(labels, fraction=0.01)], minlength=2).tolist()[1] == 1
    assert np.bincount(labels[stratified(labels, fraction=0.01, at_least=0)], minlength=2).tolist()[1] == 0


def test_per_class():
    """Exactly so many of each class."""
    index = stratified(LABELS, per_class=10)
    assert np.bincount(LABELS[index]).tolist() == [10, 10, 10]


def test_seeds():
    """The same seed draws the same rows, another one others."""
    assert np.array_equal(stratified(LABELS, fraction=0.3, seed=1), stratified(LABELS, fraction=0.3, seed=1))
    assert not np.array_equal(stratified(LABELS, fraction=0.3, seed=1), stratified(LABELS, fraction=0.3, seed=2))


def test_smaller_draws_lie_in_larger_ones():
    """With one seed, one per cent of the labels is a part of ten per cent: learning curves compare like with like."""
    few, many = stratified(LABELS, per_class=2), stratified(LABELS, per_class=8)
    assert set(few) <= set(many)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_fraction_that_cannot_be(fraction):
    """One line that names the setting."""
    with pytest.raises(UserError, match="label_fraction"):
        stratified(LABELS, fraction=fraction)


def test_too_few_of_a_class():
    """Says which class, and how many there are."""
    with pytest.raises(UserError, match="class 2 has only 10"):
        stratified(LABELS, per_class=11)
    with pytest.raises(UserError, match="class 'owl' has only 10 samples: lower it"):
        label_rows(Class(LABELS, {"classes": ["cat", "dog", "owl"]}), 1.0, 11, 0)


# -------------------------------------------------------------------- splits of a source
class Toy(Source):
    """Numbered items of three classes, in the given splits."""

    modality = "text"
    name = "toy"

    def __init__(self, own: tuple[str, ...] = ("train",), labelled: bool = True, **fractions: float):
        self.own, self.named = own, labelled
        for name, value in fractions.items():
            setattr(self, name, value)

    def own_splits(self):
        return self.own

    def read(self, split):
        items = [f"{split}{i}" for i in range(len(LABELS))]
        return Raw(items, self.as_answers(LABELS.copy()) if self.named and split != "unlabeled" else None)

    def fingerprint(self):
        return "toy"

    @property
    def classes(self):
        return ["a", "b", "c"] if self.named else None


def test_carved_splits_are_disjoint_and_whole():
    """train, val and test together are the data, each row once, labels with their items, classes in proportion."""
    source = Toy()
    assert set(source.splits()) == {"train", "val", "test"}
    parts = {s: source.get(s) for s in source.splits()}
    items = [i for raw in parts.values() for i in raw.items]
    assert sorted(items) == sorted(f"train{i}" for i in range(160))
    assert len(parts["test"]) == 32 and len(parts["val"]) == round(0.1 * 128)
    for raw in parts.values():
        assert [LABELS[int(i[5:])] for i in raw.items] == raw.labels.tolist()
        assert np.bincount(raw.labels, minlength=3)[0] == pytest.approx(len(raw) * 100 / 160, abs=2)


def test_carving_is_stable():
    """Every run, and every process, draws the same rows."""
    assert list(Toy().get("val").items) == list(Toy().get("val").items)
    assert list(Toy().get("test").items) == list(Toy().get("test").items)


def test_the_rows_held_out_are_the_same_in_every_version():
    """What an encoder was pretrained on must not be what another version tests it on: written down, since two draws alike show nothing."""
    assert [int(i[5:]) for i in Toy().get("test").items][:8] == [8, 17, 18, 20, 24, 29, 33, 50]
    assert [int(i[5:]) for i in Toy().get("val").items][:8] == [4, 36, 37, 39, 40, 42, 95, 118]
    assert stratified(LABELS, per_class=2, seed=0).tolist() == [18, 20, 84, 130, 137, 138]
    assert stratified(LABELS, fraction=0.05, seed=3).tolist() == [4, 20, 23, 25, 36, 105, 111, 122, 128]


def test_own_splits_are_left_alone():
    """A split that exists is read as it is, and only the missing ones are drawn."""
    source = Toy(own=("train", "test"))
    assert len(source.get("test")) == 160 and source.get("test").items[0] == "test0"
    assert len(source.get("train")) == 144 and len(source.get("val")) == 16
    complete = Toy(own=("train", "val", "test"))
    assert len(complete.get("train")) == 160


def test_the_training_rows_do_not_depend_on_which_split_was_asked_first():
    """Reading val, then train, gives disjoint rows too."""
    source = Toy()
    val, train = set(source.get("val").items), set(source.get("train").items)
    assert not val & train


def test_unlabeled_is_train_without_labels():
    """Pretraining reads train's rows only: held-out rows stay unseen, and labels are dropped."""
    raw = Toy().get("unlabeled")
    assert raw.labels is None and list(raw.items) == list(Toy().get("train").items)
    assert Toy(own=("train", "unlabeled")).get("unlabeled").items[0] == "unlabeled0"


def test_data_without_labels_are_not_carved():
    """There is nothing to validate by: all rows train."""
    source = Toy(labelled=False)
    assert source.splits() == ("train",) and len(source.get("train")) == 160
    with pytest.raises(UserError, match="no 'val' split"):
        source.get("val")


def test_fractions_of_zero_carve_nothing():
    """val_fraction=0 and test_fraction=0 leave train whole, and say what there is when asked for more."""
    source = Toy(val_fraction=0.0, test_fraction=0.0)
    assert len(source.get("train")) == 160
    with pytest.raises(UserError, match=r"toy has no 'test' split; it has: train"):
        source.get("test")


def test_a_source_without_train_says_what_it_has():
    """Asking for a split that cannot be drawn."""
    with pytest.raises(UserError, match=r"toy has no 'val' split; it has: test"):
        Toy(own=("test",)).get("val")


def test_taking_rows_is_lazy():
    """Choosing rows of a folder opens none of its files."""

    class Files(list):
        def __getitem__(self, i):
            opened.append(i)
            return super().__getitem__(i)

    opened: list[int] = []
    raw = Raw(Files("abcdef"), Class(np.arange(6), {"classes": list("abcdef")})).take(np.array([4, 1]))
    assert opened == [] and raw.labels.tolist() == [4, 1] and len(raw) == 2
    assert raw.items[0] == "e" and opened == [4]


def test_ordered_batches_cover_all_rows_longest_first():
    """Evaluation sees every row once; a batch too large for memory shows at once."""

    class Rows(Samples):
        labels = classes = None
        fingerprint = ""
        lengths = np.array([3, 9, 5, 7, 1])

        def __len__(self):
            return 5

        def batch(self, index):
            raise NotImplementedError

        def subset(self, index):
            raise NotImplementedError

    batches = [b.tolist() for b in Rows().ordered_batches(2)]
    assert batches == [[1, 3], [2, 0], [4]]
    assert [b.tolist() for b in Rows().ordered_batches(2, longest=9)] == batches
    assert [b.tolist() for b in Rows().ordered_batches(4, longest=4)] == [[1], [3, 2], [0, 4]]  # at most 16 tokens each
    assert [b.tolist() for b in Rows().ordered_batches(1, longest=2)] == [[1], [3], [2], [0], [4]]
