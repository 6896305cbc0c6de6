"""A trainer's batches: by number of rows or by number of tokens, distributed over several processes."""

from __future__ import annotations

from functools import partial
from typing import Any

from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from sft.data.batches.by_tokens import TokenBatches
from sft.data.batches.collate import FlatCollator
from sft.data.batches.rank_shards import RankBatchSampler, RowsWithPlaceholder
from sft.distributed.ranks import Ranks


class BatchingTrainer(Trainer):
    """A Trainer with its own data loader.

    Attributes:
        ranks: the processes that train together.
        shards_batches: whether several processes split the rows of one process's batch, see
            `sft.data.batches.rank_shards`.
        lengths: tokens of each training row; None if unknown.
        batches: those of `trainer.max_tokens_per_batch`; None if batches have a number of rows.
    """

    ranks: Ranks
    shards_batches = True
    lengths: Any = None
    batches: TokenBatches | None = None

    def token_batches(self) -> TokenBatches | None:
        """The batches of `trainer.max_tokens_per_batch` in the current layout; None if batches have a number of rows.

        Raises:
            UserError: a row is longer than the limit of a batch.
        """
        limit = getattr(self.args, "max_tokens_per_batch", None)
        if not limit:
            return None
        return TokenBatches(
            self.lengths,  # type: ignore[arg-type]
            limit,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            padded=self.batches_are_padded,
            ranks=self.args.world_size,
        )

    @property
    def batches_are_padded(self) -> bool:
        """Whether batches are padded."""
        return not isinstance(self.data_collator, FlatCollator)

    def get_train_dataloader(self) -> Any:
        """Batches by number of rows, or by number of tokens."""
        self.batches = self.token_batches()
        if self.batches is None and not (self.ranks.is_distributed and self.shards_batches):
            return super().get_train_dataloader()
        args, rows, sampler = self.args, self.train_dataset, self.batches
        if self.ranks.is_distributed:
            rows, sampler = RowsWithPlaceholder(rows), self._rank_batch_sampler(sampler)  # type: ignore[arg-type, assignment]
        loader = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        return self._prepared(loader)

    def _rank_batch_sampler(self, batches: TokenBatches | None) -> RankBatchSampler:
        """This process's part of every global batch."""
        rows, args = len(self.train_dataset), self.args  # type: ignore[arg-type]
        rank, count = self.ranks.rank, self.ranks.world_size
        if batches is not None:
            return RankBatchSampler(batches, rank, count, rows, whole=True)
        sampler: Any = self._get_train_sampler()
        drawn = isinstance(sampler, RandomSampler)
        if drawn:  # the order that accelerate draws for one process: by seed and epoch
            sampler = SeedableRandomSampler(
                sampler.data_source, sampler.replacement, sampler._num_samples, data_seed=args.data_seed
            )
        together = BatchSampler(sampler, self._train_batch_size * count, args.dataloader_drop_last)
        if drawn:
            return RankBatchSampler(together, rank, count, rows)
        return RankBatchSampler(together, rank, count, rows, order=self.ranks.broadcast)

    def _prepared(self, loader: Any) -> Any:
        """The loader as accelerate prepares it for one process: batches on the device, without distributing them
        itself."""
        if not self.ranks.is_distributed:
            return self.accelerator.prepare(loader)
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.batches is not None:  # accelerate's own call does not pass through its wrappers
            self.batches.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)
