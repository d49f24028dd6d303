#!/usr/bin/env bash
# rank-bm25 0.2.2: in a small collection, texts with the word that is asked for come last.
#
# The inverse document frequency of Okapi's BM25 is negative for words of more than half of the texts. BM25Okapi puts a
# quarter of the mean of all words' in its place, to keep it positive; where the mean is negative itself, as of a few
# passages that share a subject, so is what takes its place, and each occurrence makes a text worse. A word of exactly
# half of the texts counts nothing.
#
# Seen: asked for 'engine', three texts about engines score below 0 and the one about a pump 0, so it comes first; of
# two texts, one of them about Paris, none is preferred for 'paris'.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet rank-bm25==0.2.2 numpy==2.4.6
"$folder/bin/python" - <<'END'
from rank_bm25 import BM25Okapi


def ranked(question, texts):
    scores = BM25Okapi([text.split() for text in texts]).get_scores([question])
    return sorted(zip(map(float, scores), texts), reverse=True)


found = ranked("engine", ["the engine starts", "the pump starts", "the engine stops", "the engine runs"])
print("asked for 'engine':", *(f"{score:.3f} {text}" for score, text in found), sep="\n  ")
half = ranked("paris", ["paris is in france", "rome is in italy"])
print("asked for 'paris':", *(f"{score:.3f} {text}" for score, text in half), sep="\n  ")
assert found[0] == (0.0, "the pump starts") and all(score < 0 for score, _ in found[1:]), "rank-bm25 has changed"
assert {score for score, _ in half} == {0.0}, "rank-bm25 has changed"
END
