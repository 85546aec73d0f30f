"""What reads words out of a masked language model: the head of its family in transformers, apart from the network beneath it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sslt.errors import UserError


class MaskedHead(nn.Module):
    """The head of a transformers model `…ForMaskedLM` up to its output matrix: hidden states → states that this matrix is multiplied with.

    Whatever the family does between the two (BERT's transform, nothing) is done by its own code: the network in it is replaced by one that
    returns what it is given, and the output layer by the identity. A matrix that is tied to the word embeddings is not kept here.
    """

    def __init__(self, model: Any):
        super().__init__()
        self._base = model.base_model_prefix
        layer = model.get_output_embeddings()
        self._place = next(name for name, module in model.named_modules() if module is layer)
        tied = layer.weight is model.get_input_embeddings().weight
        setattr(model, self._base, _Given())
        self.rest = model
        self.weight: nn.Parameter | None = None if tied else layer.weight
        self.bias: nn.Parameter | None = getattr(layer, "bias", None)
        self._layer = [layer]  # out of the sight of PyTorch: its weights are known above
        self._swap(nn.Identity())
        held = [(owner, name, p) for owner in model.modules() for name, p in owner._parameters.items()]
        self._aliases = [(owner, name) for owner, name, p in held if p is not None and p is self.bias]  # BERT's has a second name
        self._show_bias(False)

    @classmethod
    def fresh(cls, network: Any) -> MaskedHead:
        """An untrained head for `network`, a transformers model. Raises `UserError` where its family has none."""
        from transformers import AutoModelForMaskedLM

        try:
            model = AutoModelForMaskedLM.from_config(network.config)
        except ValueError as e:
            raise UserError(f"{network.config.model_type} reads no masked words out: choose encoder=bert_tiny") from e
        return cls(model).to(network.device)

    @classmethod
    def apart(cls, model: Any) -> tuple[Any, MaskedHead]:
        """A whole `…ForMaskedLM` as the network beneath and the head."""
        network = getattr(model, model.base_model_prefix)
        return network, cls(model)

    def forward(self, states: Tensor) -> Tensor:
        """states [B, K, D] → [B, K, D']."""
        return self.rest(inputs_embeds=states).logits

    def layer(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """(matrix [V, D'], bias [V]), of word embeddings [V, D'] where it is tied to them."""
        return (embeddings if self.weight is None else self.weight), self.bias

    @contextlib.contextmanager
    def whole(self, network: Any) -> Iterator[Any]:
        """Within, the model as transformers knows it, over `network`."""
        layer = self._layer[0]
        layer.weight = network.get_input_embeddings().weight if self.weight is None else self.weight
        layer.bias = self.bias
        self._show_bias(True)
        self._swap(layer)
        setattr(self.rest, self._base, network)
        try:
            yield self.rest
        finally:
            setattr(self.rest, self._base, _Given())
            self._swap(nn.Identity())
            self._show_bias(False)

    def _swap(self, module: nn.Module) -> None:
        owner, _, name = self._place.rpartition(".")
        setattr(self.rest.get_submodule(owner), name, module)

    def _show_bias(self, shown: bool) -> None:
        for owner, name in self._aliases:
            owner._parameters[name] = self.bias if shown else None


class _Given(nn.Module):
    """In a network's place: its hidden states are what it is given as embeddings."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)
