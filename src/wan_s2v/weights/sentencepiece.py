"""A tokenizer from nothing but its SentencePiece model, which Comfy-Org puts into the file of the text encoder.

transformers would read such a model only with protobuf, and without it builds an empty tokenizer and says nothing.
"""

from __future__ import annotations

import torch
from sentencepiece import SentencePieceProcessor
from transformers import BatchEncoding

from wan_s2v.errors import CheckpointError


class SentencePieceTokenizer:
    """What `encode_prompt` asks of a tokenizer: one text, ended, cut and padded.

    Args:
        model: serialized.
        where: it comes from, for errors.
    """

    def __init__(self, model: bytes, where: str) -> None:
        self.processor = SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise CheckpointError(f"{where} holds no readable SentencePiece model. Fetch it again.") from error
        self.eos_token_id, self.pad_token_id = self.processor.eos_id(), self.processor.pad_id()
        if min(self.eos_token_id, self.pad_token_id) < 0:
            raise CheckpointError(f"{where}: the SentencePiece model has no end or padding token; umT5's has both.")

    def __len__(self) -> int:
        return int(self.processor.vocab_size())

    def __call__(
        self,
        text: str,
        *,
        padding: str,
        max_length: int,
        truncation: bool,
        add_special_tokens: bool,
        return_attention_mask: bool,
        return_tensors: str,
    ) -> BatchEncoding:
        """`input_ids` and `attention_mask`, (1, max_length) int64.

        Every text is ended, cut and padded to `max_length`; the other arguments are those of transformers.
        """
        assert (padding, truncation, add_special_tokens) == ("max_length", True, True)
        assert (return_attention_mask, return_tensors) == (True, "pt")
        tokens = [*self.processor.encode(text)[: max_length - 1], self.eos_token_id]
        missing = max_length - len(tokens)
        ids = torch.tensor([tokens + [self.pad_token_id] * missing])
        mask = torch.tensor([[1] * len(tokens) + [0] * missing])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})
