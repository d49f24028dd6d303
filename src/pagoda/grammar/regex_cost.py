r"""How much a regular expression may count: `(a{1000}){1000}` is short, but takes seconds to step through.

Counted repetition alone is cheap (`.{1,10000}`); what costs is repetition of what repeats. The size of an expression is
taken as if every counted repetition were written out.
"""

from __future__ import annotations

import re

from pagoda.errors import RequestError

MAX_LENGTH = 20_000  # characters of an expression
MAX_COUNT = 20_000  # of one repetition
MAX_NESTED = 1_000  # counts of repetitions in repetitions, multiplied
MAX_DEPTH = 100  # of groups

_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*),?(\d*)\}|[()]|.", re.DOTALL)


def check_cost(pattern: str, where: str) -> None:
    """Raise RequestError where stepping through the expression would take long. Its syntax is not checked."""
    place = f"at {where}: " if where else ""
    if len(pattern) > MAX_LENGTH:
        raise RequestError(f"{place}the regular expression has {len(pattern)} characters; at most {MAX_LENGTH} may be")
    nested = [1]  # for each group that is open: the largest product of counts in it so far
    last = 1  # likewise of the piece before
    for piece in _PIECE.finditer(pattern):
        text = piece.group()
        if text == "(":
            if len(nested) > MAX_DEPTH:
                raise RequestError(f"{place}the regular expression has groups more than {MAX_DEPTH} deep")
            nested.append(1)
        elif text == ")" and len(nested) > 1:
            last = nested.pop()
            nested[-1] = max(nested[-1], last)
        elif text[0] == "{" and (piece[1] or piece[2]):
            count = max(int(piece[1] or 0), int(piece[2] or 0), 1)
            if count > MAX_COUNT or (last > 1 and last * count > MAX_NESTED):
                raise RequestError(
                    f"{place}the regular expression repeats too much at {text}: at most {MAX_COUNT} times, and "
                    f"repetitions of repetitions at most {MAX_NESTED} times together"
                )
            nested[-1] = max(nested[-1], last * count)
        else:
            last = 1
