"""Login tokens: only our own signature, all claims required, until they expire."""

import base64
import json
import uuid
from datetime import timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from factories import JWT_SECRET
from fakes import EPOCH
from moorage_controller.auth import tokens

USER_ID = uuid.uuid4()


def issued() -> str:
    return tokens.issue(JWT_SECRET, user_id=USER_ID, username="anna", role="admin", now=EPOCH)


_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def forged(key: str | rsa.RSAPrivateKey = JWT_SECRET, algorithm: str = "HS256", **changes: object) -> str:
    claims = jwt.decode(issued(), options={"verify_signature": False}) | changes
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm=algorithm)


def test_token_has_documented_claims_and_lasts_a_day() -> None:
    claims = jwt.decode(issued(), options={"verify_signature": False})
    assert {k: claims[k] for k in ("userId", "username", "role")} == {
        "userId": str(USER_ID),
        "username": "anna",
        "role": "admin",
    }
    assert claims.keys() == {"userId", "username", "role", "jti", "iat", "exp"}
    assert claims["exp"] - claims["iat"] == 24 * 3600
    assert jwt.get_unverified_header(issued())["alg"] == "HS256"


def test_token_expires_to_the_second() -> None:
    token = issued()
    claims = tokens.read(JWT_SECRET, token, EPOCH + timedelta(hours=24, seconds=-1))
    assert (claims.user_id, claims.role, claims.issued_at) == (USER_ID, "admin", EPOCH)
    with pytest.raises(tokens.BadTokenError):
        tokens.read(JWT_SECRET, token, EPOCH + timedelta(hours=24))


def test_tokens_are_unique() -> None:
    assert len({tokens.read(JWT_SECRET, issued(), EPOCH).jti for _ in range(20)}) == 20


def unsigned() -> str:
    claims = jwt.decode(issued(), options={"verify_signature": False})
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


BAD = {
    "empty": "",
    "no token at all": "Bearer",
    "three empty parts": "..",
    "unsigned": unsigned(),
    "another secret": forged("another-secret-0123456789-0123456789-0123"),
    "another algorithm": forged(JWT_SECRET * 2, "HS512"),
    "the same secret, another algorithm": forged(JWT_SECRET, "HS384"),
    "a key pair": forged(_RSA, "RS256"),
    "no end": forged(exp=None),
    "no id": forged(jti=None),
    "an id that is none": forged(jti="x"),
    "a user that is none": forged(userId="1 OR 1=1"),
    "a user that is a number": forged(userId=7),
    "an end that is text": forged(exp="tomorrow"),
    "an end beyond all calendars": forged(exp=10**30),
    "altered": issued()[:-3] + "AAA",
    "not ASCII": "é.é.é",
}


@pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
def test_any_other_token_is_refused_with_same_error(token: str) -> None:
    with pytest.raises(tokens.BadTokenError):
        tokens.read(JWT_SECRET, token, EPOCH)
