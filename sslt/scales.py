"""How metrics are to be read, by the last part of their names."""

# Shares in 0..1 (some, such as correlations, in -1..1), shown as percentages.
SHARES = (
    "accuracy", "f1", "precision", "recall", "interval", "map", "miou", "auroc", "spearman", "pearson", "exact_match",
    "ndcg@10", "ndcg@5", "hr@10", "hr@5", "mrr", "recall@1", "recall@5", "recall@10",
    "rougeL", "rouge1", "rouge2", "rougeLsum", "bleu", "bleu_tokenized", "chrf", "distinct1", "distinct2",
)  # fmt: skip
# What describes a result before everything else does, in this order.
HEADLINES = (
    "rougeL", "bleu", "chrf", "accuracy", "map", "ndcg@10", "hr@10", "miou", "f1", "spearman", "precision", "recall", "ece", "nll",
)  # fmt: skip


def of_part(name: str) -> bool:
    """Whether a metric is of a part of a split, one class or one type of span, and not of the whole."""
    return not {"class", "type"}.isdisjoint(name.split("/")[:-1])


def is_share(name: str) -> bool:
    """Whether a metric or a column of this name holds shares; an accuracy may also be one of several domains (`shift/accuracy/usps`)."""
    return name.endswith(SHARES) or "accuracy" in name
