"""Signed notes, heads, keys and receipts: one form each, nothing else passes."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import checkpoint
from gateway.audit.checkpoint import Checkpoint, Damaged, Proof, VerifierKey, open_note
from gateway.audit.signing import Signer

# The example of golang.org/x/mod/sumdb/note: an Ed25519 key and a note it signed.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_SIGNATURE = (
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
)
SIGNER = Signer("gatepass.test", bytes(range(32)))
ROOT = bytes(range(32))
NOTE = SIGNER.sign(5, ROOT)
KEYS = [SIGNER.verifier]


def test_a_key_and_signature_of_another_implementation() -> None:
    key = VerifierKey.parse(GO_KEY)
    assert str(key) == GO_KEY
    text, signatures = checkpoint.split(f"{GO_TEXT}\n— PeterNeumann {GO_SIGNATURE}\n")
    assert text == GO_TEXT
    assert signatures[0][1][:4] == key.id
    checkpoint._verify(key, signatures[0][1][4:], text)


def test_a_head_reads_back() -> None:
    assert open_note(NOTE, KEYS) == Checkpoint("gatepass.test", 5, ROOT)
    assert NOTE.startswith(
        "gatepass.test\n5\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— gatepass.test "
    )
    assert VerifierKey.parse(str(SIGNER.verifier)) == SIGNER.verifier


def damage(note: str, keys: list[VerifierKey] = KEYS) -> str:
    with pytest.raises(Damaged) as caught:
        open_note(note, keys)
    return caught.value.damage


def signed(text: str) -> str:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    raw = SIGNER.verifier.id + key.sign(text.encode())
    return f"{text}\n— gatepass.test {base64.b64encode(raw).decode()}\n"


def test_A_03_old_signature_over_another_tree() -> None:
    assert damage(NOTE.replace("\n5\n", "\n6\n")) == "bad signature"


def test_A_04_signature_of_another_key() -> None:
    assert damage(Signer("gatepass.test", bytes(32)).sign(5, ROOT)) == "unknown key"
    assert damage(Signer("gatepass.tset", bytes(range(32))).sign(5, ROOT)) == "unknown key"


@pytest.mark.parametrize(
    "size", ["05", "+5", "-5", " 5", "5 ", "0x5", "5.0", "", "٥", str(2**63), "9" * 40]
)
def test_A_14_a_size_has_one_form(size: str) -> None:
    root = base64.b64encode(ROOT).decode()
    assert damage(signed(f"gatepass.test\n{size}\n{root}\n")) == "malformed number"


@pytest.mark.parametrize(
    "text",
    [
        "gatepass.test\n5\n",
        f"gatepass.test\n5\n{base64.b64encode(ROOT).decode()}\nextension\n",
        f"\n5\n{base64.b64encode(ROOT).decode()}\n",
        f"gatepass.test\n5\n{base64.b64encode(ROOT[:31]).decode()}\n",
    ],
)
def test_a_signed_text_that_is_no_head(text: str) -> None:
    assert damage(signed(text)) == "malformed head"


@pytest.mark.parametrize(
    "note",
    [
        NOTE.replace("\n", "\r\n"),
        NOTE[:-1],
        NOTE + "\n",
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("—", "–"),
        NOTE.replace("—", "-"),
        NOTE.replace("— gatepass.test", "—  gatepass.test"),
        NOTE.replace("gatepass.test ", "gatepass.test\x01 "),
        NOTE + NOTE.partition("\n\n")[2],
        NOTE + "".join(f"— other{n} AAAAAAA=\n" for n in range(16)),
        NOTE + "— short AAAA\n",
        "",
        "\n\n",
        "x" * 100_000,
    ],
)
def test_A_33_notes_have_one_form(note: str) -> None:
    assert damage(note) == "malformed note"


def test_A_33_a_homoglyph_name_is_another_key() -> None:
    assert damage(NOTE.replace("— gatepass.test", "— gаtepass.test")) == "unknown key"


def test_A_33_not_utf8() -> None:
    with pytest.raises(Damaged):
        open_note(b"\xff" + NOTE.encode(), KEYS)


def test_A_33_up_to_sixteen_signatures_are_read_and_strangers_ignored() -> None:
    many = NOTE + "".join(f"— other{n} AAAAAAA=\n" for n in range(15))
    assert open_note(many, KEYS).size == 5


def test_A_34_base64_with_altered_padding_bits() -> None:
    line = NOTE.rstrip("\n").rpartition(" ")[2]
    assert line.endswith("=")
    altered = line[:-2] + chr(ord(line[-2]) + 1) + "="
    assert base64.b64decode(altered) == base64.b64decode(line)
    assert damage(NOTE.replace(line, altered)) == "malformed base64"
    for bad in ("AA", "A===", "AAAA\n", "AA-_", "é"):
        with pytest.raises(Damaged):
            checkpoint.decode64(bad)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "name",
        "name+00000000+AAAA",
        str(SIGNER.verifier).replace("gatepass", "gatepast"),
        str(SIGNER.verifier).upper(),
        str(SIGNER.verifier) + "\n",
        " " + str(SIGNER.verifier),
        "+" + str(SIGNER.verifier),
    ],
)
def test_a_key_has_one_form(key: str) -> None:
    with pytest.raises(Damaged):
        VerifierKey.parse(key)


PROOF = Proof(3, [ROOT, ROOT[::-1]], NOTE)


def test_a_receipt_reads_back() -> None:
    text = PROOF.text()
    assert text.startswith("c2sp.org/tlog-proof@v1\nindex 3\nAAEC")
    assert text.endswith(NOTE)
    assert Proof.parse(text) == PROOF
    assert Proof.parse(Proof(0, [], NOTE).text()) == Proof(0, [], NOTE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("index 3", "index 03"),
        ("index 3", "extra AAAA\nindex 3"),
        ("index 3", "index -3"),
        ("index 3", "Index 3"),
        ("AAEC", "AAE"),
        ("\n\n", "\n"),
        ("index 3\n", "index 3\n" + "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n" * 65),
        ("index 3\n", "index 3\nAAAA\n"),
    ],
)
def test_a_receipt_has_one_form(old: str, new: str) -> None:
    with pytest.raises(Damaged):
        Proof.parse(PROOF.text().replace(old, new, 1))


@given(st.data())
def test_any_flipped_bit_of_a_note_fails(data: st.DataObject) -> None:
    raw = bytearray(NOTE.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Damaged):
        open_note(bytes(raw), KEYS)


@given(st.data())
def test_any_flipped_bit_of_a_key_fails(data: st.DataObject) -> None:
    raw = bytearray(str(SIGNER.verifier).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((Damaged, UnicodeDecodeError)):
        VerifierKey.parse(raw.decode())


@given(st.integers(0, 2**62), st.binary(min_size=32, max_size=32))
def test_print_and_parse_are_inverse(size: int, root: bytes) -> None:
    head = Checkpoint("gatepass.test", size, root)
    assert Checkpoint.parse(head.text()) == head
