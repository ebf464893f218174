"""No way to cut a secret into pieces brings it through a stream."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange.messages import FrameSeen
from gateway.proxy.scrubbing import Seams
from gateway.scrubbing import Scrubber

SECRET = 's3cret-s3cr-\u00fc"x'
TEXT = "response.output_text.delta"


def delta(text: str, index: int = 0, kind: str = TEXT) -> FrameSeen:
    return FrameSeen(kind, {"delta": text, "item_id": "msg_1", "content_index": index})


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place for place in places if place < len(text)} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def through(frames: list[FrameSeen]) -> list[FrameSeen]:
    """As from Azure: what stands whole in one frame has been taken out of its bytes."""
    seams = Seams(Scrubber([SECRET]))
    return [ready for frame in frames for ready in seams.feed(frame)] + seams.end()


_TEXTS = st.lists(
    st.sampled_from(["a", "s3c", "s3cret-", "\u00fc", " ", SECRET, json.dumps(SECRET)[1:-1]]),
    max_size=6,
).map("".join)


@given(_TEXTS, st.lists(st.integers(0, 60), max_size=12))
def test_P_42_a_secret_that_is_split_over_deltas_does_not_come_through(
    text: str, places: list[int]
) -> None:
    scrubber = Scrubber([SECRET])
    frames = [delta(scrubber.clean(part.encode()).decode()) for part in cut(text, places)]
    whole = "".join(frame.data["delta"] for frame in through(frames))
    assert whole == scrubber.clean(text.encode()).decode()


@given(st.lists(st.tuples(st.sampled_from("s3cret-"), st.integers(0, 1)), max_size=20))
def test_the_order_of_frames_stays_and_nothing_is_lost(told: list[tuple[str, int]]) -> None:
    done = FrameSeen("response.output_text.done", {"text": "x"})
    frames = [delta(text, index) for text, index in told]
    ready = through([*frames, done])
    assert ready[-1] is done
    for index in (0, 1):
        sent = "".join(text for text, place in told if place == index)
        got = "".join(
            frame.data["delta"] for frame in ready[:-1] if frame.data["content_index"] == index
        )
        assert got == sent


def test_deltas_that_were_no_secret_go_on_as_they_were() -> None:
    frames = [delta(text) for text in ("Hi s", "3", "!", " s3cr", "et", "-x")]
    assert through(frames) == frames
    seams = Seams(Scrubber([SECRET]))
    assert seams.feed(frames[0]) == []
    assert seams.feed(frames[1]) == []
    assert seams.feed(frames[2]) == frames[:3]


def test_probabilities_do_not_spell_the_secret_out() -> None:
    half = len(SECRET) // 2
    frames = [
        FrameSeen(TEXT, {"delta": text, "logprobs": [{"token": text}], "sequence_number": number})
        for number, text in enumerate([SECRET[:half], SECRET[half:]])
    ]
    [joined] = through(frames)
    assert joined.data == {"delta": "[redacted]", "logprobs": [], "sequence_number": 1}


def test_what_is_no_text_goes_on_at_once() -> None:
    image = FrameSeen("response.image_generation_call.partial_image", {"partial_image_b64": "s3"})
    audio = FrameSeen("response.audio.delta", {"delta": 7})
    assert through([image, audio]) == [image, audio]


def nested(text: str, depth: int, *, escaped: str) -> str:
    """`text` as it is written after so many serialisers, each of which escapes these letters."""
    for _ in range(depth):
        text = "".join(
            f"\\u{ord(letter):04X}" if letter in escaped else json.dumps(letter)[1:-1]
            for letter in text
        )
    return text


@settings(deadline=None)
@given(
    st.text('aZ7-_/+="\\\\&<~', min_size=6, max_size=20),
    st.integers(0, 4),
    st.sets(st.sampled_from('/+="&<~')),
)
def test_S_13_a_secret_is_found_however_often_and_however_oddly_it_was_escaped(
    secret: str, depth: int, escaped: set[str]
) -> None:
    written = nested(secret, depth, escaped="".join(escaped))
    clean = Scrubber([secret]).clean(f"x {written} y".encode())
    assert clean == b"x [redacted] y"


def test_what_is_no_secret_stays_as_it_is() -> None:
    text = b"canary-7f3a and canary/7f3b, canary\\u002f7f3"
    assert Scrubber(["canary/7f3a"]).clean(text) == text
