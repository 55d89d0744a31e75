"""langchain-openai as an application uses it."""

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from answers import PIECES
from conftest import BACKENDS, KEY
from conversation import RESULTS, picture

TEXT = "".join(PIECES)


@pytest.fixture
def chat(gateway, backend):
    return ChatOpenAI(model=backend, base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=30)


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return RESULTS["get_weather"]


@tool
def get_time(zone: str) -> str:
    """Tells the time in a zone."""
    return RESULTS["get_time"]


class City(BaseModel):
    """A city and how many live there."""

    city: str = Field(description="its name")
    population: int


def test_invoke_answers(chat):
    reply = chat.invoke([SystemMessage("Be brief."), HumanMessage("hi")])
    assert reply.content == TEXT
    assert reply.usage_metadata["total_tokens"] == 18
    assert reply.response_metadata["finish_reason"] == "stop"


async def test_ainvoke_answers(chat):
    assert (await chat.ainvoke("hi")).content == TEXT


def test_stream_yields_the_pieces(chat):
    chunks = list(chat.stream("hi"))
    assert "".join(chunk.content for chunk in chunks) == TEXT
    assert len([chunk for chunk in chunks if chunk.content]) == len(PIECES)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "az"])
def test_stream_counts_tokens_once(chat):
    total = None
    for chunk in chat.stream("hi", stream_usage=True):
        total = chunk if total is None else total + chunk
    assert total.content == TEXT
    assert total.usage_metadata["total_tokens"] == 18


async def test_astream_yields_the_pieces(chat):
    assert "".join([chunk.content async for chunk in chat.astream("hi")]) == TEXT


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_bound_tools_are_called_in_parallel_and_answered(chat, streamed):
    bound = chat.bind_tools([get_weather, get_time])
    question = HumanMessage("[call-tools]")
    if streamed:
        first = None
        for chunk in bound.stream([question]):
            first = chunk if first is None else first + chunk
    else:
        first = bound.invoke([question])
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_time", {"zone": "Europe/Paris"}),
    ]
    results = [ToolMessage(RESULTS[call["name"]], tool_call_id=call["id"]) for call in first.tool_calls]
    assert bound.invoke([question, first, *results]).content == "get_weather=sunny; get_time=12:00"


def test_structured_output_is_parsed(chat):
    assert chat.with_structured_output(City).invoke("[as-json]") == City(city="Paris", population=2100000)


def test_a_picture_is_seen(chat):
    reply = chat.invoke([HumanMessage([{"type": "text", "text": "[see]"}, picture()])])
    assert reply.content.startswith("image/png 70 ")


@pytest.mark.parametrize("model", ["oai/text-embedding-3-small", "mis/mistral-embed", "llama/nomic-embed"])
def test_documents_and_queries_are_embedded(gateway, model):
    # Without the length check the texts are sent as texts, not as tokens of OpenAI's own vocabulary.
    options = {"base_url": f"{gateway.url}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
    embeddings = OpenAIEmbeddings(model=model, **options)
    assert embeddings.embed_documents(["one", "three"]) == [[0.5, -1.25, 3.0, 0.0], [0.5, -1.25, 5.0, 1.0]]
    assert embeddings.embed_query("four") == [0.5, -1.25, 4.0, 0.0]


def test_a_failure_raises_the_exception_of_the_sdk(fresh_gateway):
    chat = ChatOpenAI(model="oai", base_url=f"{fresh_gateway.url}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.RateLimitError):
        chat.invoke("[rate-limit]")
    with pytest.raises(openai.APIError):
        list(ChatOpenAI(model="llama", base_url=f"{fresh_gateway.url}/v1", api_key=KEY).stream("[truncate]"))
