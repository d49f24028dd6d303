"""Drafts along the text that the client says the answer will mostly be (OpenAI's Predicted Outputs)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq

from pagoda.engine.drafters import DraftQuery, Key, Proposal
from pagoda.engine.speculation.matching import NGRAM, NgramIndex

FOLLOWING, FOUND_AGAIN = 3, 1  # strengths


class _Place:
    """Where in the prediction an answer is."""

    def __init__(self, prediction: Seq[int]) -> None:
        self.text = array("i", prediction)
        self.index = NgramIndex()
        self.index.extend(self.text, len(self.text))
        self.at: int | None = 0  # the next token of the prediction; None: the answer has left it
        self.num_seen = 0  # tokens of the answer that were compared
        self.run = NGRAM  # tokens in a row that were as predicted


class PredictionDrafter:
    """A `Drafter` for requests that bring a prediction. After a divergence it finds its place again by three tokens,
    the nearest place behind the one it left.
    """

    name = "prediction"
    active = True

    def __init__(self) -> None:
        self._places: dict[Key, _Place] = {}

    def price(self, queries: Seq[DraftQuery]) -> None:
        """Looking up takes next to nothing."""

    def propose(self, queries: Seq[DraftQuery]) -> list[Proposal]:
        return [self._propose(query) if query.request.prediction else Proposal() for query in queries]

    def _propose(self, query: DraftQuery) -> Proposal:
        place = self._places.get(query.key)
        if place is None:
            place = self._places[query.key] = _Place(query.request.prediction or ())
        self._walk(place, query.tokens, query.prompt_len)
        if place.at is None:
            return Proposal()
        strength = FOLLOWING if place.run >= 2 * NGRAM or not place.num_seen else FOUND_AGAIN
        return Proposal(place.text[place.at : place.at + query.max_tokens].tolist(), strength)

    def _walk(self, place: _Place, tokens: array[int], prompt_len: int) -> None:
        """Compare what the answer has got since the last time."""
        left = 0
        for i in range(prompt_len + place.num_seen, len(tokens)):
            if place.at is not None and place.at < len(place.text) and tokens[i] == place.text[place.at]:
                place.at += 1
                place.run += 1
            else:
                left, place.run = place.at or left, 0
                place.at = self._find(place, tokens, i + 1, prompt_len, left)
        place.num_seen = len(tokens) - prompt_len

    def _find(self, place: _Place, tokens: array[int], end: int, prompt_len: int, left: int) -> int | None:
        tail = tokens[max(prompt_len, end - NGRAM) : end]
        places = place.index.places(tail)
        return min(places, key=lambda found: (found < left, abs(found - left)), default=None)

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """Nothing was advanced."""

    def forget(self, key: Key) -> None:
        self._places.pop(key, None)
