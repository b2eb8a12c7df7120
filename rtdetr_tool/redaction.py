"""Detect secrets, and mask them in texts and plain data.

A text is masked in three ways: by its form (credentials in URLs, `password=...`, known kinds of tokens), by the values
of environment variables with secret names, and by the secrets in a spec (`remember_secrets`), which are known exactly
and therefore masked everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"
SHORTEST = 8  # characters of a value that is masked everywhere; a shorter one may be part of any word
LONGEST_CREDENTIALS = 1_000  # characters between `://` and `@`

_PASSWORD = r"pass(?:w|phrase|code)|pwd|(?<!com)(?<!by)pass(?:$|[_\-.])|secret|credential"
_KEY_OF = "api|access|account|auth|aws|client|crypt|encryption|private|service|shared|signing|storage|ssh|user"
# Names of environment variables may have these words anywhere; names in data, which may be anything, are stricter.
_SECRET_VARIABLE = re.compile(rf"{_PASSWORD}|token|key|jwt|auth(?!or)", re.I)
_SECRET_KEY = re.compile(rf"{_PASSWORD}|token(?:s?$|[_\-.])|(?:{_KEY_OF})[_\-.]?keys?(?:$|[_\-.])|[_\-.]keys?$", re.I)
_SECRET_NUMBER = re.compile(_PASSWORD, re.I)  # keys with a secret number; numbers of tokens are not secret

_PARAMETER = r"token|key|sig|secret|pass|pwd|credential|auth|jwt|session|cookie"
_SHORT_PARAMETERS = "pw|psw|pin|code|sas"
_MASKS = (  # the text before a secret (group 1) is kept
    re.compile(
        rf"""([?&;](?:[^=&;\s"']{{0,60}}(?:{_PARAMETER})[^=&;\s"']{{0,60}}|{_SHORT_PARAMETERS})=)"""
        r"""(?:"[^"]+"|'[^']+'|[^&\s"'#]+)""",
        re.I,
    ),
    re.compile(
        r"""((?:api[_-]?key|(?:access|private|encryption)[_-]?key|token|passw(?:or)?d|passphrase|sshpass|\bpwd|secrets?"""
        r"""|credentials)["']?\s*[=:]\s*)(?:"[^"]+"|'[^']+'|["']?[^\s"',}&]+)""",
        re.I,
    ),
    re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/-]{8,}=*", re.I),
    re.compile(r"(\b(?:hf|gh[oprsu]|github_pat|glpat|sk|xox[abp])[_-])[A-Za-z0-9_-]{16,}"),
)
_NEXT_ADDRESS = re.compile(r"[\s,;][A-Za-z][A-Za-z0-9+.\-]{1,30}://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{1,30}:/{1,2}(?!/)")
_PORT_AND_PATH = re.compile(r"(?:localhost|[\w-]+(?:\.[\w-]+)+|\[[0-9a-fA-F:]+\]):\d{1,5}(?:[/?#\s]|$)")
_UNUSUAL = re.compile(r"[/\s@\"'<>]")  # in credentials
_WHOLE_PARAMETER = re.compile(
    rf"([?&;](?:[^=&;]{{0,60}}(?:{_PARAMETER})[^=&;]{{0,60}}|{_SHORT_PARAMETERS})=)([^&]+)", re.I
)

_remembered: set[str] = set()


def names_secret(name: str) -> bool:
    """Whether the value of an environment variable with this name must be masked.

    Names with PASSWORD, SECRET, TOKEN, KEY and similar words count as secret.
    """
    return _SECRET_VARIABLE.search(name) is not None


def mask_secrets(text: str) -> str:
    """The text without values of keys, tokens and passwords, and without credentials in URLs."""
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    text = _without_credentials(text)
    for pattern in _MASKS:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def without_secrets(data: Any) -> Any:
    """Plain data for files, with secrets in texts masked, and the complete values of keys that name secrets."""
    if isinstance(data, Mapping):
        return {key: MASK if _is_secret(str(key), value) else without_secrets(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_secrets(value) for value in data]
    return _masked_value(data) if isinstance(data, str) else data


def remember_secrets(data: Any) -> None:
    """Mask the secrets in this plain data in all texts of this process from now on."""
    for secret in _secrets_in(data):
        forms = {secret, repr(secret)[1:-1], quote(secret), quote(secret, ""), quote_plus(secret)}
        forms |= {unquote(secret), unquote_plus(secret)}
        _remembered.update(form for form in forms if _is_distinct(form))


def _is_secret(key: str, value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and _SECRET_KEY.search(key) is not None
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, str) for entry in value):
        return _SECRET_NUMBER.search(key) is not None
    return type(value) in (int, float) and _SECRET_NUMBER.search(key) is not None


def _masked_value(text: str) -> str:
    """A complete value: a URL parameter in it ends at the next parameter or at the end of the value."""
    if "://" in text:
        text = _WHOLE_PARAMETER.sub(rf"\1{MASK}", _without_credentials(text))
    return mask_secrets(text)


def _secrets_in(data: Any, key: str = "") -> Iterator[str]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from _secrets_in(value, str(name))
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _secrets_in(value, key)
    elif _is_secret(key, data):
        yield str(data)
    elif isinstance(data, str):
        for begin, end in _credentials(data):
            user, colon, password = data[begin:end].partition(":")
            yield from (data[begin:end], password if colon else user)
        if "://" in data:
            yield from (match[2] for match in _WHOLE_PARAMETER.finditer(data))


def _is_distinct(text: str) -> bool:
    """Whether a secret can be replaced everywhere without affecting other words."""
    return len(text) >= SHORTEST or (len(text) >= 3 and re.search(r"[\s'\"/@&#]", text) is not None)


def _known_secrets() -> Sequence[str]:
    """Known secrets, longest first, because one may be part of another. Paths of existing files are not secrets."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and names_secret(name) and not (os.path.isabs(value) and os.path.exists(value))
    }
    return sorted(values | _remembered, key=len, reverse=True)


def _without_credentials(text: str) -> str:
    parts, position = [], 0
    for begin, end in _credentials(text):
        parts += [text[position:begin], MASK]
        position = end
    return "".join([*parts, text[position:]]) if parts else text


def _credentials(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the credentials before `@` in URLs.

    A password may contain `/`, `@`, quotes and spaces: everything up to the last `@` of the line belongs to it, but not
    beyond the start of another URL. `host:8080/path@version` has a port and no password.
    """
    position = 0
    while scheme := _SCHEME.search(text, position):
        begin = position = scheme.end()
        limit = min(begin + LONGEST_CREDENTIALS, len(text))
        line_end = text.find("\n", begin, limit)
        limit = limit if line_end < 0 else line_end
        following = _NEXT_ADDRESS.search(text, begin, limit)
        end = text.rfind("@", begin, following.start() if following else limit)
        if end < 0:
            continue
        credentials = text[begin:end]
        user, colon, password = credentials.partition(":")
        if re.search(r"[/\s\"'<>]", user) or (colon and (password[:1].isspace() or _PORT_AND_PATH.match(text, begin))):
            end = begin + len(_UNUSUAL.split(credentials, maxsplit=1)[0])  # the plain form without special characters
            if text[end : end + 1] != "@":
                continue
        yield begin, end
        position = end
