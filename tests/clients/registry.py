"""Which clients are tried against the gateway, and what each of them must be able to do. Pure.

A client is a row: its pins, the program that runs inside its environment, the ways it can be set
up, and the operations it has. The suite, its environments and `docs/clients.md` follow this table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

HERE = Path(__file__).parent
PINS = HERE / "pins"
PROGRAMS = HERE / "programs"

OPERATIONS = {
    "chat": "chat completion",
    "chat_stream": "chat, streamed",
    "chat_stream_usage": "chat, streamed with its usage",
    "chat_stream_raw": "chat, streamed, lines read raw",
    "chat_tools": "chat with a tool call",
    "chat_tools_stream": "chat with a tool call, streamed",
    "completions": "completion",
    "completions_stream": "completion, streamed",
    "embeddings": "embeddings of texts",
    "embeddings_tokens": "embeddings of token arrays",
    "embeddings_base64": "embeddings as base64",
    "responses": "response",
    "responses_stream": "response, streamed",
    "responses_retrieve": "response read again",
    "responses_continue": "response continued by `previous_response_id`",
    "responses_input_items": "response: its input items",
    "responses_delete": "response deleted",
    "responses_cancel": "response in the background, cancelled",
    "images_generate": "image generation (DALL-E, gpt-image)",
    "images_generate_stream": "image generation, streamed",
    "images_edit": "image edit",
    "transcribe": "transcription (Whisper, gpt-4o-transcribe)",
    "transcribe_text": "transcription as text",
    "transcribe_srt": "transcription as subtitles",
    "transcribe_stream": "transcription, streamed",
    "translate": "speech translated",
    "speech": "text spoken",
    "speech_stream": "text spoken, read in pieces",
    "realtime": "realtime session",
    "models_list": "models listed",
    "models_retrieve": "model read",
    "files_upload": "file uploaded",
    "files_content": "file: its content",
    "files_list": "files listed",
    "files_delete": "file deleted",
    "batches_create": "batch created",
    "batches_list": "batches listed",
    "error_401": "unknown key: the client's own error for 401",
    "error_404": "unknown model: the one for 404",
    "error_429": "over a limit: the one for 429",
    "error_stream": "a stream that breaks off raises",
    "retry_429": "throttled call tried again by the client",
}
"""What there is to try, in the order of the table."""

UPSTREAMS = ("v1", "2025-04-01-preview")
"""The api-versions by which the gateway calls Azure: each client is run with each."""


BLOCKING, ASYNC = "blocking", "async"


def way(setup: str, pace: str) -> str:
    """What a program calls a setup at a pace."""
    return f"{setup}, {pace}"


class Runtime(Enum):
    """What runs a client's program."""

    PYTHON = "Python"
    NODE = "Node"


@dataclass(frozen=True, slots=True)
class Fault:
    """An operation that a client cannot do in some setups, whatever it talks to."""

    setups: tuple[str, ...]
    operation: str
    why: str


@dataclass(frozen=True, slots=True)
class Client:
    """One client at one version.

    `packages` are what a user would install; every further package is pinned beside them. `setups`
    are the ways in which it can be made, `paces` how it can be called. `faults` must fail, so that
    the table stays true. `tls` is for a client that insists on it, be it for realtime alone.
    """

    name: str
    title: str
    runtime: Runtime
    program: str
    packages: tuple[str, ...]
    setups: tuple[str, ...]
    operations: tuple[str, ...]
    paces: tuple[str, ...] = (BLOCKING, ASYNC)
    faults: tuple[Fault, ...] = ()
    tls: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        """Every setup at every pace: its program tries each operation in each of them."""
        return tuple(way(setup, pace) for setup in self.setups for pace in self.paces)

    def faulty(self) -> set[tuple[str, str]]:
        """The ways and operations that its faults concern."""
        return {
            (way(setup, pace), fault.operation)
            for fault in self.faults
            for setup in fault.setups
            for pace in self.paces
        }

    @property
    def pins(self) -> Path:
        """The file with the exact versions: for pip, or npm's lockfile."""
        if self.runtime is Runtime.PYTHON:
            return PINS / f"{self.name}.txt"
        return PINS / self.name / "package-lock.json"

    def versions(self) -> dict[str, str]:
        """The pinned version of each of its packages."""
        text = self.pins.read_text(encoding="utf-8")
        if self.runtime is Runtime.PYTHON:
            found = dict(line.split("==") for line in text.splitlines())
        else:
            listed = json.loads(text)["packages"]
            prefix = "node_modules/"
            found = {path.removeprefix(prefix): str(e.get("version")) for path, e in listed.items()}
        return {package: found[package] for package in self.packages}


_CHAT = ("chat", "chat_stream", "chat_stream_usage", "chat_tools", "chat_tools_stream")
_COMPLETIONS = ("completions", "completions_stream")
_RESPONSES = ("responses", "responses_stream", "responses_continue")
_ERRORS = ("error_401", "error_404", "error_429", "error_stream", "retry_429")
_SURFACES = ("OpenAI on /v1", "OpenAI on /openai/v1")
_AZURE = ("AzureOpenAI", "AzureOpenAI with a token", "AzureOpenAI with azure_deployment")


def _openai_python(major: int) -> Client:
    return Client(
        name=f"openai-python-{major}",
        title=f"openai-python {major}.x",
        runtime=Runtime.PYTHON,
        program="openai_python",
        packages=("openai",),
        setups=(*_SURFACES, *_AZURE),
        operations=tuple(OPERATIONS),
    )


CLIENTS: tuple[Client, ...] = (
    _openai_python(1),
    _openai_python(2),
    _openai_python(3),
    Client(
        name="openai-js",
        title="openai-js",
        runtime=Runtime.NODE,
        program="openai_js",
        packages=("openai",),
        setups=(
            *_SURFACES,
            "AzureOpenAI",
            "AzureOpenAI with a token",
            "AzureOpenAI with deployment",
        ),
        paces=(ASYNC,),
        operations=tuple(OPERATIONS),
        tls=True,
        faults=(
            Fault(
                ("AzureOpenAI", "AzureOpenAI with a token"),
                "images_edit",
                "calls `/openai/images/edits`, which Azure does not have; give `deployment`",
            ),
        ),
    ),
    Client(
        name="ai-sdk-azure",
        title="@ai-sdk/azure",
        runtime=Runtime.NODE,
        program="ai_sdk_azure",
        packages=("@ai-sdk/azure", "ai"),
        setups=(
            "createAzure with baseURL",
            "createAzure with tokenProvider",
            "createAzure with useDeploymentBasedUrls",
        ),
        paces=(ASYNC,),
        operations=(
            *_CHAT,
            *_COMPLETIONS,
            "embeddings",
            *_RESPONSES,
            "images_generate",
            "images_edit",
            "transcribe",
            "speech",
            *_ERRORS,
        ),
    ),
    Client(
        name="langchain-openai",
        title="langchain-openai",
        runtime=Runtime.PYTHON,
        program="langchain_azure",
        packages=("langchain-openai", "openai"),
        setups=(
            "Azure… with model",
            "Azure… with azure_deployment",
            "Azure… with a token",
            "…OpenAI on /v1",
        ),
        operations=(
            *_CHAT,
            *_COMPLETIONS,
            "embeddings",
            *_RESPONSES,
            *_ERRORS,
        ),
        faults=tuple(
            Fault(
                ("Azure… with model",),
                operation,
                "`AzureOpenAI` does not send `model`; give `azure_deployment`",
            )
            for operation in _COMPLETIONS
        ),
    ),
    Client(
        name="llama-index-azure",
        title="LlamaIndex",
        runtime=Runtime.PYTHON,
        program="llama_index_azure",
        packages=(
            "llama-index-llms-azure-openai",
            "llama-index-embeddings-azure-openai",
            "openai",
        ),
        setups=(
            "AzureOpenAI with engine",
            "AzureOpenAI with azure_deployment",
            "AzureOpenAI with use_azure_ad",
        ),
        operations=(*_CHAT, *_COMPLETIONS, "embeddings", *_RESPONSES, *_ERRORS),
    ),
    Client(
        name="semantic-kernel",
        title="semantic-kernel",
        runtime=Runtime.PYTHON,
        program="semantic_kernel_azure",
        packages=("semantic-kernel", "openai"),
        setups=("Azure… with endpoint", "Azure… with base_url", "Azure… with ad_token"),
        paces=(ASYNC,),
        operations=(
            *_CHAT,
            *_COMPLETIONS,
            "embeddings",
            *_RESPONSES,
            "images_generate",
            "images_edit",
            "transcribe",
            "speech",
            *_ERRORS,
        ),
        faults=tuple(
            Fault(("Azure… with base_url",), operation, "`AzureResponsesAgent` takes `endpoint`")
            for operation in _RESPONSES
        ),
        tls=True,
    ),
)
