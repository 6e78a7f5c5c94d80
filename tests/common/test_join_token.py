"""The join token: parsing, refusals, and the fields that its MAC covers."""

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.tls.join_token import JoinToken

part = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-"), min_size=1, max_size=64)


@given(part, st.binary(min_size=32, max_size=32), part)
def test_token_round_trips_through_text(token_id: str, secret: bytes, fingerprint: str) -> None:
    token = JoinToken(token_id, secret, fingerprint)
    assert JoinToken.parse(f"  {token}\n") == token


def test_secrets_are_unique_and_hidden_in_repr() -> None:
    first, second = JoinToken.make("1", "ab"), JoinToken.make("1", "ab")
    assert first.secret != second.secret
    assert len(first.secret) == 32
    secret = str(first).split(".")[2]
    assert secret not in repr(first)
    assert repr(first.secret) not in repr(first)


@given(st.text())
def test_malformed_token_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"join token.*[.;]"):
        JoinToken.parse(text)


def test_truncated_token_is_refused() -> None:
    text = str(JoinToken.make("id", "f" * 64))
    moorage, token_id, secret, fingerprint = text.split(".")
    for broken in (
        text[: len(moorage) + 5],
        f"{moorage}.{token_id}.{secret[:-2]}.{fingerprint}",
        f"{moorage}.{token_id}..{fingerprint}",
        f"{moorage}.{token_id}.{secret}a.{fingerprint}",
        f"other.{token_id}.{secret}.{fingerprint}",
        f"{text}.more",
    ):
        with pytest.raises(ValueError, match=r"join token"):
            JoinToken.parse(broken)


def test_proof_is_a_mac_over_all_fields() -> None:
    token = JoinToken("id", b"s" * 32, "fingerprint")
    message = json.dumps(["id", "fingerprint", "csr", "host:7443", "1.0"]).encode()
    assert token.proof("csr", "host:7443", "1.0") == f"id.{hmac.new(b's' * 32, message, hashlib.sha256).hexdigest()}"
    others = {
        token.proof("csr", "host:7443", "1.0"),
        token.proof("other", "host:7443", "1.0"),
        token.proof("csr", "host:7444", "1.0"),
        token.proof("csr", "host:7443", "1.1"),
        token.proof('csr","host:7443', "", "1.0"),
        JoinToken("other", token.secret, token.ca_fingerprint).proof("csr", "host:7443", "1.0"),
        JoinToken("id", b"t" * 32, token.ca_fingerprint).proof("csr", "host:7443", "1.0"),
        JoinToken("id", token.secret, "other").proof("csr", "host:7443", "1.0"),
    }
    assert len(others) == 8
