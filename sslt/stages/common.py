"""What the stages share: the device, the encoder to start from, one fit, the result folders."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from sslt import distributed, groups, stored
from sslt.config import build
from sslt.data.base import Samples, many
from sslt.data.offered import Offered
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.streams.streams import Stream, most_of_a_rank, of_this_rank
from sslt.encoders import inserted
from sslt.encoders.base import Encoder
from sslt.encoders.dropout import set_dropout
from sslt.encoders.files import read_tensors, write_tensors
from sslt.encoders.load import build_encoder, fresh_like, load_encoder
from sslt.encoders.windows import set_windows
from sslt.encoders.word_vectors import check_word_vectors, start_words
from sslt.errors import UserError
from sslt.evaluation.features import encode
from sslt.loggers import log_picture
from sslt.processes import accelerator, image_size
from sslt.runs import Run, run_of
from sslt.scales import of_part
from sslt.targets.base import Target, other_answers

if TYPE_CHECKING:  # Lightning takes two seconds to import, which what trains nothing need not wait for
    from sslt.callbacks.probes import Validation
    from sslt.learner import Learner, Term

log = logging.getLogger("sslt")


def device_of(cfg: Any) -> torch.device:
    """This process's device."""
    if accelerator(cfg.trainer) == "gpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def starting_encoder(cfg: Any, source: Any, corpus: Any = None) -> Encoder:
    """The encoder of `from=`: an existing one, `scratch` (fresh, by `encoder=`), or `scratch:RUN` (fresh, as RUN's).

    corpus: what a fresh one is fitted to, where that is more than `source`.
    """
    start, corpus = cfg["from"], corpus or source
    trust = list(cfg.trust)
    teacher = None
    if start in (None, "scratch"):
        teacher = _taught_by(cfg, source)
        encoder = build_encoder(_whole(_sized(cfg, corpus), source), corpus, teacher)
    elif str(start).startswith("scratch:"):
        encoder = fresh_like(str(start).partition(":")[2], trust)
    else:
        wanted = cfg.encoder.get("processor", {}).get("max_length") if cfg.encoder is not None else None
        encoder = load_encoder(str(start), source.modality, trust, wanted, cfg.get("base"))
        if encoder.quantization is not None:
            raise UserError(
                f"from={start} is quantized ({encoder.quantization.kind}): it answers and is measured, but cannot be trained; start from "
                f"the run that it was made from{_parent_of(start)}"
            )
        if encoder.adapter is not None:
            log.info("from=%s is an adapter over %s: it is merged into its base", start, encoder.origin)
            inserted.merge(encoder)
    if cfg.get("word_vectors") is not None:
        check_word_vectors(start, encoder)
    if start in (None, "scratch"):
        _start_words(cfg, encoder, teacher, corpus)
    if encoder.modality != source.modality:
        raise UserError(
            f"from={start} reads {many(encoder.modality)}, but {source.name} holds {many(source.modality)}: choose another data="
        )
    if source.answer.in_image and start not in (None, "scratch") and getattr(encoder.processor, "fitted_by", None) == "crop":
        encoder.processor.fitted_by = "stretch"
    set_dropout(encoder, cfg.dropout)
    set_windows(encoder, cfg.windows)
    return encoder


def starts_fresh(cfg: Any) -> bool:
    """Whether an encoder starts with nothing that was learned: neither from weights nor with another's words."""
    return cfg.get("word_vectors") is None and str(cfg["from"] or "scratch").startswith("scratch")


def _taught_by(cfg: Any, source: Any) -> Encoder | None:
    """The teacher of `objective.teacher=`, by whose tokenizer a fresh student of texts reads where it can; None where there is none."""
    teacher = None if cfg.get("objective") is None else cfg.objective.get("teacher")
    if source.modality != "text" or teacher is None:
        return None
    return load_encoder(str(teacher), "text", list(cfg.trust), key="objective.teacher")


def _start_words(cfg: Any, encoder: Encoder, teacher: Encoder | None, source: Any) -> None:
    """Set the word vectors of a fresh transformer by `word_vectors=`, or by a teacher whose tokenizer it could not take."""
    start = cfg.get("word_vectors")
    if start is not None:
        said_by = load_encoder(str(start), "text", list(cfg.trust), key="word_vectors")
        if said_by.modality != "text":
            raise UserError(f"word_vectors={start} reads {many(said_by.modality)}: name a run of texts, as of +task=crops")
    elif teacher is None or type(encoder.processor) is not TextProcessor:
        return
    elif encoder.processor.digest == teacher.processor.digest:
        log.info("the student reads by the tokenizer of its teacher, %s", cfg.objective.teacher)
        return
    else:
        start, said_by = cfg.objective.teacher, teacher

    def features_of(words: list[str]) -> torch.Tensor:
        return encode(said_by, said_by.processor.at_once(Offered("text", words)), device_of(cfg), eval_batch_size(cfg))

    share = start_words(encoder, source, features_of)
    log.info("word vectors start from what %s says of each word, for %.0f %% of the vocabulary", start, 100 * share)


def _parent_of(start: Any) -> str:
    """Of a run that was compressed, where its parent was."""
    found = run_of(stored.located(str(start)))
    parent = {} if found is None else found.info.get("parent") or {}
    return f", from={stored.shown(Path(str(parent['from'])))}" if "from" in parent else ""


def _whole(node: Any, source: Any) -> Any:
    """The node of a fresh encoder that cuts nothing of the images away where answers lie in them (the processor says what it does)."""
    if not source.answer.in_image or node is None or (node.get("processor") or {}).get("fit", "crop") != "crop":
        return node
    whole = copy.deepcopy(node)
    with open_dict(whole):
        whole.processor = {**(whole.get("processor") or {}), "fit": "stretch"}
    return whole


def _sized(cfg: Any, source: Any) -> Any:
    """The node of a fresh encoder, for images of at most `max_image_size` where neither it nor the data set has a size set."""
    node = cfg.encoder
    if cfg.get("max_image_size") is None or node is None or source.modality != "image" or getattr(source, "size", None):
        return node
    limit = image_size(cfg)
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"max_image_size={limit}: give a number of pixels, or auto")
    if "size" not in (node.get("processor") or {}) or node.processor["size"] is not None or (own := source.image_shape[0]) <= limit:
        return node
    log.info("%s: images of %d × %d are taken at %d × %d (max_image_size=%d keeps their size)", source.name, own, own, limit, limit, own)
    return OmegaConf.merge(node, {"processor": {"size": limit}})


def prepare(encoder: Encoder, source: Any, split: str) -> Samples:
    """A split made ready for an encoder; one process of a node prepares, the others then find it in the cache."""
    if distributed.rank() != 0:
        distributed.barrier()
    try:
        return encoder.processor.prepare(source, split)
    finally:
        if distributed.rank() == 0:
            distributed.barrier()


def prepare_labelled(encoder: Encoder, source: Any, split: str) -> Samples:
    """`prepare`, for a split that is measured on. Raises `UserError` where it has no answers (a test set to predict, say)."""
    samples = prepare(encoder, source, split)
    if samples.answers is None:
        raise UserError(
            f"the '{split}' split of {source.name} has no labels to measure on: move it elsewhere, so that one is drawn from train "
            f"(`sslt predict input=` reads it there)"
        )
    return samples


@dataclasses.dataclass
class Parts:
    """What is minimised and on what, by name; the first stream is the task's own.

    unlabelled: samples that a joint objective learns from, beside the task's own.
    """

    terms: dict[str, Term]
    streams: dict[str, Stream]
    unlabelled: list[Samples] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class Supervised(Parts):
    """What fine-tuning is made of; parts of the config (`joint`, `shift`) add to it or put something else in a place.

    labels: how many teach. validate: number format → what is measured every few epochs; chosen_by: the number of it whose
    highest value picks the epoch that is reported (None: the last). test: what the result is measured on. after: what it adds
    to the final numbers.
    """

    labels: int
    validate: Callable[[str], dict[str, float]]
    chosen_by: str | None
    test: Samples
    after: Callable[[dict[str, float], Validation], dict[str, float]] = lambda metrics, validation: {}


def batch_size(cfg: Any, samples: Samples) -> int:
    """`batch_size`, or less where there are not so many samples."""
    share = most_of_a_rank(samples, cfg.trainer.get("lanes"))
    if cfg.batch_size > share:
        log.info("batch_size=%d is larger than the %d labelled samples: batches of %d are used", cfg.batch_size, len(samples), share)
    return min(cfg.batch_size, share)


def stream(cfg: Any, samples: Samples, batch_size: int, views: Any, *, drop_last: bool, tokens: int | None = None) -> Stream:
    """This rank's share of `samples`, as the views need them; tokens: of a batch, instead of `batch_size` samples."""
    lanes = cfg.trainer.get("lanes")
    return of_this_rank(samples, batch_size, seed=cfg.seed, drop_last=drop_last, views=views, batch_tokens=tokens, lanes=lanes)


def log_final(learner: Learner, metrics: dict[str, Any], pictures: dict[str, Path] | None = None) -> None:
    """Hand the final numbers, and pictures (name → file), to every logger and close it."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not of_part(k)}
    for logger in learner.loggers_used:
        for name, path in (pictures or {}).items():
            log_picture(logger, name, path, learner.batches_seen)
        logger.log_metrics(numbers, step=learner.batches_seen)
        logger.finalize("success")
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish()


def save_result(run: Run, encoder: Encoder, cfg: Any, source: Any, metrics: dict[str, Any]) -> None:
    """Write `encoder/` with its model card."""
    if not run.is_main:
        return
    from sslt.report.cards import model_card

    encoder.save(run / "encoder", model_card(run, encoder, cfg, source, metrics))


def stored_bytes(run: Run) -> int:
    """What the weights of a run's encoder and of what stands on it take on disk."""
    return sum(p.stat().st_size for folder in ("encoder", "head", "episodes") for p in (run / folder).glob("*.safetensors"))


def eval_batch_size(cfg: Any) -> int:
    """Batch size of measuring beside training: where that is small, four times as large, as nothing is kept for a backward pass."""
    batch = int(cfg.batch_size)
    return max(batch, min(256, 4 * batch))


def save_best(path: Path, encoder: Encoder, objective: torch.nn.Module, run: Run) -> None:
    """Keep the weights as they are now."""
    if run.is_main:
        path.parent.mkdir(exist_ok=True)
        parts = {**{f"e.{k}": v for k, v in encoder.state_dict().items()}, **{f"o.{k}": v for k, v in objective.state_dict().items()}}
        write_tensors(path, parts)


def load_best(path: Path, encoder: Encoder, objective: torch.nn.Module) -> None:
    """Take back what `save_best` kept. Raises `UserError` where it is damaged."""
    try:
        state = read_tensors(path)
    except UserError as e:
        raise UserError(f"{e}: the best epoch is lost; go on with report=last to have the last one's") from e
    parts: dict[str, torch.nn.Module] = {"e.": encoder, "o.": objective}
    for prefix, module in parts.items():
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def label_hint(source: Any) -> str:
    """Where the labels of a data set without labels could come from."""
    kinds = {
        "text": "for text_csv name their column, data.label=…",
        "image": "put the images of each class into a folder of its own",
        "items": "what is learned there is each user's last item, which data.hold_out=true holds out",
    }
    return f": {kinds[source.modality]}"


def check_target(source: Any, node: Any, config_dir: str | None = None) -> None:
    """Raise `UserError` where the target of a composed `node` learns other answers than the samples have, or nothing from these."""
    kind = get_object(node["_target_"])
    if issubclass(kind, Target) and kind.answer.kind == source.answer.kind:
        kind.check(source)
        return
    option = f"objective={groups.option_of('objective', node['_target_'], config_dir)}"
    if not issubclass(kind, Target):
        raise UserError(f"{option} learns without answers: it pretrains, and cannot be a target")
    raise other_answers(kind, source, option)


def build_target(node: Any, encoder: Encoder, source: Any) -> Target:
    """The target of a composed `node` on an encoder, for the answers of `source`."""
    target = build(node, encoder, space=source.space)
    assert isinstance(target, Target)
    target.check_encoder(encoder)
    return target


def target_node(cfg: Any, source: Any, config_dir: str | None) -> Any:
    """The config of the target: that of `objective=`, else of the one that learns what the samples have."""
    if cfg.objective is not None:
        return cfg.objective
    if not source.answer.learned_by:
        raise UserError(f"the samples of {source.name} have {source.answer.words}, which no target learns yet")
    return OmegaConf.create(groups.own_values("objective", source.answer.learned_by[0], config_dir))


def refuse_new_answers(source: Any) -> None:
    """Raise `UserError` for data whose test answers are new: nothing that knows those of train can tell them."""
    if source.new_classes_in_test:
        raise UserError(f"the test classes of {source.name} are others than those of train: use episodes, +episodes=protonet or centroid")


def labels_of(parent: Run) -> dict[str, Any]:
    """Which part of the training labels a run has learned from; of one that was compressed, the run it was made from."""
    known = parent.info.get("labels")
    if isinstance(known, dict):
        return {str(k): v for k, v in known.items()}
    made = parent.config
    return {
        "label_fraction": made.get("label_fraction", 1.0),
        "labels_per_class": made.get("labels_per_class"),
        "seed": made.get("seed", 0),
    }


def keep_data(run: Run, node: Any) -> None:
    """Write into the run's config which data it is about, as `from=` the run asks for them."""
    if not run.is_main:
        return
    config = OmegaConf.load(run / "config.yaml")
    config.data = node
    OmegaConf.save(config, run / "config.yaml")
