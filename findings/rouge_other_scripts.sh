#!/usr/bin/env bash
# rouge-score 0.1.2: a text in Russian, Greek or Chinese has nothing in common with itself.
#
# The tokenizer that the metric takes for granted keeps a to z and digits and throws all else away. So ROUGE of texts in
# other scripts is 0 whatever they say, and of words with accents it compares what is left: no warning, and a figure
# that looks like that of a bad model.
#
# Seen: ROUGE-1 and ROUGE-L of a Russian, a Greek and a Chinese sentence with themselves are 0, of an English one 1;
# German 'Größe' and 'Größten' share the word 'gr', which scores more than nothing.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet rouge-score==0.1.2
"$folder/bin/python" - <<'END'
from rouge_score.rouge_scorer import RougeScorer

scorer = RougeScorer(["rouge1", "rougeL"])
TEXTS = {
    "English": "The cat sits on the mat.",
    "Russian": "Кошка сидит на коврике.",
    "Greek": "Η γάτα κάθεται στο χαλί.",
    "Chinese": "猫坐在垫子上。",
}
seen = {name: [score.fmeasure for score in scorer.score(text, text).values()] for name, text in TEXTS.items()}
accents = scorer.score("Größe", "Größten")["rouge1"].fmeasure
print("each with itself:", seen, "'Größe' with 'Größten':", round(accents, 2))
others = {name: [0, 0] for name in ("Russian", "Greek", "Chinese")}
assert seen == {"English": [1, 1], **others} and accents > 0, "rouge-score behaves otherwise now"
END
