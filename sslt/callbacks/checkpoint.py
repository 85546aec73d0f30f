"""Checkpoints: whole or not at all, by epoch, by time, and when somebody stops the run."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sslt import distributed, signals, stored
from sslt.callbacks.agreement import Agreement
from sslt.callbacks.between_steps import whole_step
from sslt.errors import UserError
from sslt.sharded import checkpoint as parts

log = logging.getLogger("sslt")

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of torch's optimizers: one number for each of a weight's
_OF_ROWS = ("row_square", "row_steps")  # of `sslt.optimizers.AdamW` for tables: one number for each row
_NEEDED = {"state_dict", "optimizer_states", "loops", "callbacks", "batches_seen", "optimizer_steps", "adaptation"}


class Damaged(Exception):
    """A checkpoint is not what was written; says why."""


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in a file, its tensors memory-mapped. Raises `Damaged`, `FileNotFoundError`.

    Every byte that matters is compared: torch writes a zip with a CRC-32 of each tensor, but does not look at it when it reads.
    """
    try:
        stored.require_regular(path)
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                raise Damaged("it was not written by torch")
            if (bad := file.testzip()) is not None:
                raise Damaged(f"{bad.partition('/')[2]} in it is not as it was written")
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (Damaged, FileNotFoundError):
        raise
    except UserError as e:
        raise Damaged(str(e)) from e
    except zipfile.BadZipFile as e:
        raise Damaged("it is cut short or no checkpoint") from e
    except pickle.UnpicklingError as e:  # what torch says of it is advice to run what is in there
        raise Damaged("it holds something other than numbers and plain data") from e
    except Exception as e:  # whatever bytes may stand there
        raise Damaged(f"it cannot be read ({type(e).__name__})") from e
    if not isinstance(found, dict) or not found.keys() >= _NEEDED:
        raise Damaged("it is no checkpoint of sslt")
    if parts.KEY in found and (why := parts.damage(path, found[parts.KEY])) is not None:
        raise Damaged(why)
    return found


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none at all.

    A damaged one is set aside with a line. Raises `UserError` where there are some and all are damaged.
    """
    wrong: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            step = int(read(path)["batches_seen"])
        except FileNotFoundError:
            continue
        except Damaged as e:
            wrong[path] = str(e)
            continue
        for bad, why in wrong.items():
            aside = bad.with_name(f"{bad.name}.damaged")
            os.replace(bad, aside)
            log.warning(
                "%s is damaged (%s): going on from %s, which is of step %d; what came after it is trained again", aside, why, path, step
            )
        return path
    if wrong:
        said = ", and ".join(f"{path} is damaged ({why})" for path, why in wrong.items())
        raise UserError(f"{said}: nothing is left to go on from; to train from the beginning, delete {folder}")
    return None


def _remove_unused(folder: Path) -> None:
    """Remove the parts that no checkpoint in a folder names; none, where one cannot be read now."""
    if not (folder / parts.FOLDER).is_dir():  # a run that is not sharded has none to look for
        return
    try:
        found = [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in folder.glob("*.ckpt")]
    except Exception:  # whatever lies there; the next time is soon
        return
    parts.sweep(folder, {str(c[parts.KEY]["folder"]) for c in found if parts.KEY in c})


class Signals(pl.Callback):
    """Undoes what Lightning does to signals when a fit begins; must be the first callback. `restore` does so after the fit."""

    def __init__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in signals.ENDING}

    def on_train_start(self, *_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        with contextlib.suppress(ValueError):  # not in the main thread, where nothing was changed
            for number, handler in self.before.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor. Lightning's own makes the whole file in memory first, beside weights and optimizer."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as f:  # torch opening it by name would not tell a full disk from any other mistake
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As it was saved; of one in parts the whole tensors."""
        return parts.whole(super().load_checkpoint(path, map_location, weights_only), Path(path))


class Checkpoint(pl.Callback):
    """Keeps `last.ckpt` and the one before it, `previous.ckpt`. Must come after the others, so that it saves what the others did.

    every_minutes: at most this much work is lost to a kill; also saved after every epoch that took longer, and when a signal comes that
    would end the process (`signals.ENDING`), which ends the run at the next step; a second Ctrl-C ends it at once.
    keep_every_n_epochs: keep copies `epoch=N.ckpt`; 0 keeps none. agreement: where ranks hear of each other's wishes; its owner has them
    meet before this is called.
    """

    def __init__(self, folder: Path, every_minutes: float, keep_every_n_epochs: int = 0, agreement: Agreement | None = None):
        self.folder, self.period, self.keep = folder, every_minutes * 60, keep_every_n_epochs
        self.watch = signals.Watch(waits=True)
        self._last = 0.0
        self._saved_at = -1
        self.agreement = agreement = agreement or Agreement()
        agreement.asked = self._wishes
        agreement.within = min(agreement.within, self.period or agreement.within)
        self._wished = (False, False)  # to stop, to save: of some rank, since the last optimizer step

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last = time.monotonic()
        self._saved_at = pl_module.batches_seen
        for optimizer in trainer.optimizers:
            _check_moments(optimizer, self.folder)
        self.watch.start()
        distributed.barrier()  # others measured before, for as long as that took

    # ---------------------------------------------------------------- when
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        told = self.agreement.told if distributed.active() else self._wishes()
        if told:
            self._wished = (self._wished[0] or told[0], self._wished[1] or told[1])
        stop, due = self._wished
        between_steps = whole_step(trainer, pl_module)  # gradients that wait for more batches are not saved
        if between_steps:
            self._wished = (False, False)
        if stop and between_steps:
            if self.watch.came is not None and not pl_module.interrupted:
                log.info("%s came: the run is saved and ends after step %d", signals.name(self.watch.came), pl_module.batches_seen)
            pl_module.interrupted = trainer.should_stop = True
        within = pl_module.batches_seen % pl_module.steps_per_epoch != 0
        if (stop or due) and between_steps and within:  # at the end of an epoch it is saved when the other callbacks are done
            self.save(trainer, pl_module)

    def _wishes(self) -> list[bool]:
        """Whether a signal came to this rank, and whether it has been long since a checkpoint was written."""
        return [self.watch.came is not None, bool(self.period) and time.monotonic() - self._last > self.period]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        whole = pl_module.batches_seen % pl_module.steps_per_epoch == 0
        epoch = pl_module.batches_seen // pl_module.steps_per_epoch
        waited = time.monotonic() - self._last > min(self.period, 30)
        (due,) = distributed.any_rank([waited])
        if whole and (due or pl_module.interrupted):
            self.save(trainer, pl_module)
        if whole and self.keep and epoch % self.keep == 0:
            self.save(trainer, pl_module, f"epoch={epoch}.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._saved_at != pl_module.batches_seen and not pl_module.interrupted:
            self.save(trainer, pl_module)
        if any(distributed.any_rank([self.watch.came is not None])):
            pl_module.interrupted = True  # training is done, but measuring is not

    # ---------------------------------------------------------------- how
    def save(self, trainer: pl.Trainer, pl_module: Any, name: str = LAST) -> None:
        """Write a checkpoint beside its place, then rename it into it. Refuses weights that are not finite."""
        found = next((n for n, p in pl_module.named_parameters() if not torch.isfinite(distributed.local(p)).all()), None)
        if (bad := next(filter(None, distributed.gather_objects(found)), None)) is not None:
            raise UserError(f"the weights of {bad} are no longer finite at step {pl_module.batches_seen}; {self.advice()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp, place = self.folder / f".{name}.tmp", self.folder / name
        self.watch.writing = True
        try:
            trainer.save_checkpoint(tmp)
            if trainer.is_global_zero:
                if name == LAST and place.exists():  # a kill before the next line leaves the former one, under its new name
                    os.replace(place, self.folder / PREVIOUS)
                os.replace(tmp, place)
                _remove_unused(self.folder)
        finally:
            self.watch.writing = False
            if trainer.is_global_zero:
                tmp.unlink(missing_ok=True)
        if name == LAST:  # nothing goes on from a copy
            self._last = time.monotonic()
            self._saved_at = pl_module.batches_seen

    def advice(self) -> str:
        """What to do after a loss went wrong."""
        last = self.folder / LAST
        kept = f"the last good checkpoint is kept in {last}; " if last.exists() else ""
        return f"{kept}lower optimizer.lr, raise schedule.warmup, or set trainer.gradient_clip_val=1 or trainer.precision=32"


def _check_moments(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Raise `UserError` where what an optimizer took from a checkpoint in `folder` is not of its parameters.

    An optimizer can hold several kinds of state, of dense and of sparse gradients; what a parameter lacks of another's kind is damage.
    """
    kinds = {frozenset(state) for state in optimizer.state.values()}
    for parameter, state in optimizer.state.items():
        names = set().union(*(kind for kind in kinds if state and kind > frozenset(state))) | set(state)
        for name in sorted(names):
            value = state.get(name, "nothing")
            if name in _MOMENTS or name in _OF_ROWS:
                shape = parameter.shape if name in _MOMENTS else parameter.shape[:1]
                fits = value is None or (isinstance(value, torch.Tensor) and value.shape == shape)
            elif name == "step":
                fits = isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
            else:
                fits = name in state
            if not fits:
                raise UserError(
                    f"the checkpoint in {folder} is damaged: '{name}' of its optimizer fits no weights; "
                    f"to train from the beginning, delete the folder"
                )


class NaNGuard(pl.Callback):
    """Ends the run when the loss is not finite, naming the step.

    On a GPU the loss is looked at every `every` steps, so that no step waits for it; the first bad step is remembered there.
    """

    def __init__(self, checkpoint: Checkpoint, every: int = 50):
        self.checkpoint, self.every = checkpoint, every
        self._first_bad: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        loss = pl_module.last["loss"]
        step = pl_module.batches_seen
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                self._stop(step, float(loss))
            return
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, dtype=torch.long, device=loss.device)
        self._first_bad = torch.where((self._first_bad < 0) & ~torch.isfinite(loss), step, self._first_bad)
        if step % self.every == 0 or trainer.should_stop:
            bad = int(self._first_bad)
            if bad >= 0:
                self._stop(bad, float("nan"))

    def _stop(self, step: int, value: float) -> None:
        raise UserError(f"the loss became {value} at step {step}; {self.checkpoint.advice()}")
