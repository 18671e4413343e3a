"""Tokens for tests, made by a JWT library that knows nothing of simplejwt."""

import time
from typing import Any

import jwt

SECRET_KEY = "a secret key for tests, long enough for HS256"


def token(key: str = SECRET_KEY, algorithm: str = "HS256", **claims: Any) -> str:
    """A token with `claims`; a claim that is None is left out.

    It expires in a day: some are made when tests are collected, which may be long before they run.
    """
    claims = {"exp": int(time.time()) + 86_400, "sub": "alice", **claims}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm)
