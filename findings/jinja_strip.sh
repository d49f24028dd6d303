#!/usr/bin/env bash
# @huggingface/jinja 0.5.11 (npm) and jinja2 3.1.6: strip('\n') takes spaces away, too.
#
# Chat templates are written for jinja2, where strip, lstrip and rstrip take the characters to remove. In JavaScript's
# implementation, which transformers.js and the hub's pages render with, they ignore the argument, without an error, and
# remove all white space or, where other characters were meant, nothing of these. Templates of thinking models use it:
# they cut thoughts off with .split('</think>')[-1].lstrip('\n'), so code that begins with spaces loses its indentation.
#
# Seen: of '\n    return x', lstrip('\n') leaves the four spaces in Python and none of them in JavaScript; of '##a##',
# strip('#') leaves 'a' in Python and all of it in JavaScript.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv python && python/bin/pip install --quiet jinja2==3.1.6
npm install --silent --no-audit --no-fund @huggingface/jinja@0.5.11
cat > template.jinja <<'END'
[{{ answer.split('</think>')[-1].lstrip('\n') }}] [{{ title.strip('#') }}]
END
cat > values.json <<'END'
{"answer": "<think>\nShort.\n</think>\n    return x", "title": "##a##"}
END
in_python=$(python/bin/python -c "
import jinja2, json
print(jinja2.Template(open('template.jinja').read()).render(json.load(open('values.json'))))")
in_javascript=$(node --input-type=module -e "
import { readFileSync } from 'node:fs'
import { Template } from '@huggingface/jinja'
const values = JSON.parse(readFileSync('values.json', 'utf8'))
console.log(new Template(readFileSync('template.jinja', 'utf8').trim()).render(values))")
printf 'Python:     %s\nJavaScript: %s\n' "$in_python" "$in_javascript"
[ "$in_python" = '[    return x] [a]' ] && [ "$in_javascript" = '[return x] [##a##]' ]
