"""`trainer=trl`: the same rows, labels and callbacks through trl.SFTTrainer: its loss, its padded batches.

Everything else is the same: checkpoints, evaluation, metrics and the guard against non-finite values are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft.config.errors import UserError
from sft.data.batches.collate import split_batch
from sft.data.documents import Rows
from sft.model.base import base_of
from sft.training.arguments import Arguments
from sft.training.layout.layout import Layout
from sft.training.trainer.trainer import SftTrainer

try:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise UserError(f"TRL cannot be imported: {error}", where="trainer=trl", remedy="pip install 'sft[trl]'") from error


@dataclass
class TrlArguments(Arguments, SFTConfig):
    """trl.SFTConfig with its own names; rows are prepared by `dataset`."""

    own_loss = True
    requires = ("trl", "trl")

    def __post_init__(self) -> None:
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # rows are already tokenized and labelled
        super().__post_init__()

    def trainer(self) -> type[SftTrainer]:
        """The trainer class for these arguments."""
        return TrlTrainer


class TrlTrainer(SftTrainer, SFTTrainer):
    """Our trainer on top of TRL's: `super()` of ours is TRL's, and the loss is TRL's.

    Args:
        model, args, tokenizer, train, **kwargs: as of SftTrainer.
    """

    shards_batches = False  # with several processes accelerate distributes the batches

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        tokenizer: Any,
        train: Rows,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, args, tokenizer=tokenizer, train=train.to_dataset(), processing_class=tokenizer, **kwargs
        )
        self.lengths = train.lengths

    def attention_for(self, asked: str | None) -> str | None:
        """The model's own attention: TRL's batches are padded.

        Raises:
            UserError: varlen attention is requested.
        """
        if asked == "varlen":
            raise UserError(
                "TRL's batches are padded, and varlen attention is for those that are not",
                where="model.attn_implementation",
                remedy="model.attn_implementation=sdpa, or trainer=default",
            )
        own = base_of(self.model)
        return asked or ("sdpa" if getattr(own, "_supports_sdpa", False) else "eager")

    def apply_layout(self, layout: Layout) -> None:
        """Use padded batches; TRL applies the output layer itself."""
        super().apply_layout(Layout(layout.attention, chunked=False))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss of the batch."""
        batch, about = split_batch(inputs)
        if self.noise is not None:
            self.noise.of(batch)
        given = {key: value for key, value in batch.items() if key != "shift_labels"}
        found = SFTTrainer.compute_loss(self, model, given, return_outputs, num_items_in_batch)
        self.check_loss(model, found[0] if return_outputs else found, batch, about)
        return found

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["input_ids", "labels", "source", "row", "lengths"]
