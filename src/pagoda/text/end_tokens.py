"""Which tokens end an answer: those that a model's files declare, and those known by their names.

The names and the two exceptions are llama.cpp's (`special_eog_ids` in llama-vocab.cpp). That program takes a name for a
control token whatever its type; here a token that the file calls normal text is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pagoda.text.vocabulary import TokenType

END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "▁<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip

TURN_TEXTS = frozenset({"<|eot_id|>", "<end_of_turn>", "<|im_end|>", "<|end|>"})  # of those, that end a turn in a chat

# Tokens of fill-in-the-middle prompts behind which nothing of the answer follows, by the key that names their id.
FIM_END_TEXTS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

NAMES = END_TEXTS.union(*FIM_END_TEXTS.values())

# Where the left ones are all there, the right one does not end an answer: harmony's <|end|> only ends a message, and
# </s> is ordinary text for Gemma 4 and PLaMo.
_NO_END = (
    (("<|return|>", "<|call|>"), "<|end|>"),
    (("<|calls|>", "<|flush|>"), "<|end|>"),
    (("<|call|>", "<|flush|>"), "<|end|>"),
    (("<|tool_response>",), "</s>"),
    (("<|plamo:eos|>",), "</s>"),
)
_MARKED_TYPES = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED})


def end_ids(
    tokens: Sequence[str],
    types: Sequence[int],
    declared: Iterable[int | None],
    *,
    roles: Iterable[str] = FIM_END_TEXTS,
) -> frozenset[int]:
    """Ids that end an answer: the declared ones and those known by their names.

    `roles` are the keys of FIM_END_TEXTS for which no id is declared; of their names, the first one counts.
    """
    stated = {i for i in declared if i is not None and i >= 0}
    marked = {text: i for i, text in enumerate(tokens) if text in NAMES and types[i] in _MARKED_TYPES}
    known = [text for text in marked if text in END_TEXTS]
    for role in roles:
        known += [text for text in FIM_END_TEXTS[role] if text in marked][:1]
    present = {*known, *(tokens[i] for i in stated if i < len(tokens))}
    exceptions = {text for others, text in _NO_END if present.issuperset(others)}
    return frozenset(stated.union(marked[text] for text in known if text not in exceptions))
