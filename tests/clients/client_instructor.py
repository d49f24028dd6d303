"""`instructor`, whose answers are pydantic models: through tools, through JSON schemas, and streamed in part."""

from __future__ import annotations

import instructor
import openai
from cases import (
    KEY,
    LIMIT,
    MODEL,
    PERSON_QUESTION,
    QUESTION,
    URL,
    WRONG_KEY,
    Person,
    check_capital,
    raises,
    run,
)

ASK = {"model": MODEL, "temperature": 0, "max_tokens": LIMIT, "max_retries": 0}
PERSON = [{"role": "user", "content": PERSON_QUESTION}]


def client(mode: instructor.Mode, key: str = KEY) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key=key, max_retries=0, timeout=120), mode=mode)


def chat() -> None:
    answer = client(instructor.Mode.TOOLS).create(
        response_model=None, messages=[{"role": "user", "content": QUESTION}], **ASK
    )
    check_capital(answer.choices[0].message.content)


def stream() -> None:
    pieces = list(client(instructor.Mode.TOOLS).create_partial(response_model=Person, messages=PERSON, **ASK))
    assert pieces[-1].model_dump() == {"name": "Jason", "age": 25}


def tools() -> None:
    found = client(instructor.Mode.TOOLS).create(response_model=Person, messages=PERSON, **ASK)
    assert found.model_dump() == {"name": "Jason", "age": 25}


def structured() -> None:
    for mode in (instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
        found = client(mode).create(response_model=Person, messages=PERSON, **ASK)
        assert found.model_dump() == {"name": "Jason", "age": 25}, (mode, found)


def refusal() -> None:
    def ask(key: str, **fields: object) -> object:
        return client(instructor.Mode.TOOLS, key).create(response_model=Person, messages=PERSON, **ASK, **fields)

    refused = raises(Exception, lambda: ask(WRONG_KEY))
    assert isinstance(_cause(refused), openai.AuthenticationError), refused
    refused = raises(Exception, lambda: ask(KEY, extra_body={"temprature": 1}))
    cause = _cause(refused)
    assert isinstance(cause, openai.BadRequestError), refused
    assert cause.param == "temprature"


def _cause(error: BaseException) -> BaseException:
    """What is below instructor's own exception."""
    while not isinstance(error, openai.APIError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    run(chat, stream, tools, structured, refusal)
