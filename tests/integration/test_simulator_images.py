"""The simulator's images, through the official SDK and on the wire."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import openai
import pytest

from tests.support.azure import ask, azure
from tests.support.sdk import KINDS, PLAIN, sdk_at

PATH = "/openai/v1/images/generations"
PNG = b"\x89PNG\r\n\x1a\n"
CAT, MASK = PNG + b"cat" * 1000, PNG + b"mask"
by_both = pytest.mark.parametrize("kind", KINDS)


@by_both
@pytest.mark.gen_test
async def test_a_dalle_answers_with_an_address_or_the_picture(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind, api_version="2024-10-21") as sdk:
        by_url = await sdk.images.generate(model="dalle3", prompt="a cat")
        whole = await sdk.images.generate(
            model="dalle3", prompt="a cat", response_format="b64_json", size="1792x1024"
        )
    [item] = by_url.data
    assert item.url.startswith("https://")
    assert item.revised_prompt.endswith("a cat")
    assert "hate" in item.model_extra["content_filter_results"]
    assert "jailbreak" in item.model_extra["prompt_filter_results"]
    assert by_url.usage is None
    assert base64.b64decode(whole.data[0].b64_json).startswith(PNG)


@by_both
@pytest.mark.gen_test
async def test_a_gpt_image_comes_with_its_usage(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.images.generate(
            model="gpt-image-1", prompt="a cat", n=2, quality="low", size="1024x1536"
        )
    assert (answer.quality, answer.size, answer.output_format) == ("low", "1024x1536", "png")
    assert len({item.b64_json for item in answer.data}) == 2
    assert answer.data[0].url is None
    assert answer.data[0].model_extra == {}
    assert answer.usage.output_tokens == 2 * 272
    assert answer.usage.input_tokens_details.text_tokens == answer.usage.input_tokens == 2


@by_both
@pytest.mark.gen_test
async def test_pictures_are_streamed_from_rough_to_whole(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        stream = await sdk.images.generate(
            model="gpt-image-1", prompt="a cat", stream=True, partial_images=2
        )
        events = [event async for event in stream]
        edit = await sdk.images.edit(
            model="gpt-image-1", image=("c.png", CAT), prompt="x", stream=True, partial_images=1
        )
        edited = [event async for event in edit]
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[-1].usage.output_tokens == 4160
    assert [e.type for e in edited] == ["image_edit.partial_image", "image_edit.completed"]


@by_both
@pytest.mark.gen_test
async def test_an_edit_arrives_byte_for_byte(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.images.edit(
            model="gpt-image-1",
            image=[("cat.png", CAT, "image/png"), ("dog.png", PNG, "image/png")],
            mask=("mask.png", MASK, "image/png"),
            prompt="swap them",
            n=2,
        )
        [record] = sim.requests
    assert len(answer.data) == 2
    assert answer.usage.input_tokens_details.image_tokens == 2 * 323
    files = [(p.name, p.filename, p.size, p.sha256) for p in record.form if p.filename]
    assert files == [
        ("image[]", "cat.png", len(CAT), hashlib.sha256(CAT).hexdigest()),
        ("image[]", "dog.png", len(PNG), hashlib.sha256(PNG).hexdigest()),
        ("mask", "mask.png", len(MASK), hashlib.sha256(MASK).hexdigest()),
    ]
    assert record.deployment == "gpt-image-1"
    assert record.body_sha256 == hashlib.sha256(record.body).hexdigest()
    assert {p.name: p.text for p in record.form if p.filename is None} == {
        "prompt": "swap them",
        "model": "gpt-image-1",
        "n": "2",
    }


@by_both
@pytest.mark.gen_test
async def test_a_refused_picture_is_a_policy_violation(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        for model in ("dalle-filtered", "gpt-image-filtered", "dalle-err-content_policy"):
            with pytest.raises(openai.BadRequestError) as raised:
                await sdk.images.generate(model=model, prompt="x")
            assert raised.value.code == "content_policy_violation"
            said: Any = raised.value.body
            assert said["inner_error"]["content_filter_results"]["violence"]["filtered"]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "dalle"}, "prompt"),
        ({"model": "dalle", "prompt": 1}, "prompt"),
        ({"model": "dalle", "prompt": ""}, "prompt"),
        ({"model": "dalle", "prompt": "x" * 4001}, "prompt"),
        ({"model": "dalle", "prompt": "x", "n": 2}, "n"),
        ({"model": "dalle", "prompt": "x", "size": "1x1"}, "size"),
        ({"model": "dalle", "prompt": "x", "stream": True}, "stream"),
        ({"model": "gpt-image-1", "prompt": "x", "response_format": "url"}, "response_format"),
        ({"model": "gpt-image-1", "prompt": "x", "n": 11}, "n"),
        ({"model": "gpt-image-1", "prompt": "x", "quality": "hd"}, "quality"),
        ({"model": "gpt-image-1", "prompt": "x", "partial_images": 4}, "partial_images"),
        ({"prompt": "x"}, None),
    ],
)
async def test_a_bad_request_is_told_which_parameter(body: Any, param: str | None) -> None:
    async with azure() as sim:
        answer = await ask(sim, PATH, body)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param


@pytest.mark.gen_test
async def test_an_edit_without_a_picture_is_refused() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        wrong: list[dict[str, Any]] = [
            {"image": []},
            {"image": ("a.png", CAT), "n": "two"},
            {"image": [("a.png", CAT)] * 17},
            {"image": ("a.png", CAT), "model": "dall-e-2"},
        ]
        for given in wrong:
            with pytest.raises(openai.BadRequestError):
                await sdk.images.edit(**{"model": "gpt-image-1", "prompt": "x", **given})


@pytest.mark.gen_test
async def test_edits_are_in_previews_only_and_pictures_can_be_large() -> None:
    edits = "/openai/deployments/gpt-image-1/images/edits?api-version="
    async with azure() as sim:
        old = await ask(sim, f"{edits}2024-10-21", b"")
        no_form = await ask(sim, f"{edits}2025-04-01-preview", b"{}")
        large = await ask(sim, PATH, {"model": "gpt-image-size1000000", "prompt": "x"})
    assert old.status == 404
    assert (no_form.status, "multipart" in no_form.json["error"]["message"]) == (400, True)
    picture = base64.b64decode(large.json["data"][0]["b64_json"])
    assert len(picture) == 1_000_000
