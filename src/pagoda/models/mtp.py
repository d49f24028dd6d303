"""A head that predicts one token more (multi-token prediction, MTP; GGUF files say nextn): a layer beside the model.

Of position i it reads the model's last hidden state h, after the final norm, and the token that came next (DeepSeek-V3,
arXiv 2412.19437, section 2.2):

    x = proj [norm_e(embedding(token i + 1)), norm_h(h i)];  h' i = norm(block(x));  logits of token i + 2 = output h' i

Embedding and output are the model's, unless files hold others. To guess further, h' takes the place of h.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.backends.base import Ops
from pagoda.backends.specs import KVGroup
from pagoda.models.layers import AnyNorm, Block, Linear, Norm
from pagoda.types import RawTensor

# Without ".weight", as in `names.TENSORS`. Folders of some families have other names (`Family.head_names`).
MTP_TENSORS: dict[str, tuple[str, str]] = {
    "mtp_projection": ("blk.{i}.nextn.eh_proj", "model.layers.{i}.eh_proj"),
    "mtp_token_norm": ("blk.{i}.nextn.enorm", "model.layers.{i}.enorm"),
    "mtp_hidden_norm": ("blk.{i}.nextn.hnorm", "model.layers.{i}.hnorm"),
    "mtp_norm": ("blk.{i}.nextn.shared_head_norm", "model.layers.{i}.shared_head.norm"),
    "mtp_output": ("blk.{i}.nextn.shared_head_head", "model.layers.{i}.shared_head.head"),
    "mtp_embedding": ("blk.{i}.nextn.embed_tokens", "model.layers.{i}.embed_tokens"),
}


@dataclass(frozen=True, slots=True)
class MtpHead:
    """A `ForwardModel` that reads hidden states (`Batch.given`) and the tokens after them.

    from_token and from_hidden (E, E): the columns of the projection for each of the two.
    """

    embedding: RawTensor  # (V, E)
    token_norm: Norm
    hidden_norm: Norm
    from_token: Linear
    from_hidden: Linear
    block: Block
    norm: AnyNorm
    output: RawTensor  # (V, E)
    max_context: int
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    logit_scale: float = 1.0

    @property
    def vocab_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.embedding.shape[1]

    @property
    def num_layers(self) -> int:
        return 1

    @property
    def num_kv_heads(self) -> int:
        assert self.block.attention is not None
        return self.block.attention.spec.num_kv_heads

    @property
    def head_dim(self) -> int:
        assert self.block.attention is not None
        return self.block.attention.spec.head_dim

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        assert self.block.attention is not None
        return (KVGroup((0,), self.block.attention.spec.window),)

    def forward(self, ops: Ops) -> None:
        token = self.token_norm.forward(ops, ops.embed(self.embedding, self.embedding_scale))  # [T, E]
        hidden = self.hidden_norm.forward(ops, ops.given(self.hidden_size))  # [T, E]
        x = ops.add(self.from_token.forward(ops, token), self.from_hidden.forward(ops, hidden))
        x = self.norm.forward(ops, self.block.forward(ops, 0, x))
        ops.logits(x, self.output, scale=self.logit_scale, softcap=self.logit_softcap)  # [R, V]
        ops.hidden_states(x)  # [R2, E]
