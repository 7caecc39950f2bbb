"""Tokens of the IR's text, and errors that point at them."""

from __future__ import annotations

import re
from typing import NamedTuple

from nestor.errors import IRError
from nestor.ir.syntax import KEYWORDS, NAME, unquote_name

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+|\#[^\n]*)"
    r"|(?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)"
    r"|(?P<int>\d+)"
    rf"|(?P<name>{NAME.pattern})"
    r"|(?P<quoted>`(?:[^`\\\n]|\\.)*`)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<symbol><-|<=|>=|==|!=|<<|>>|//|\.\.|[-+*/%<>=&|^(){}\[\],:?≤≥])"
)
_SAME = {"≤": "<=", "≥": ">="}


class Token(NamedTuple):
    """``kind`` is float, int, name, keyword, string, symbol or end; ``text`` is unquoted."""

    kind: str
    text: str
    start: int


class Tokens:
    """A cursor over the tokens of ``source``.

    Raises: ``IRError`` with line, column and a caret wherever a token does not fit.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = self._scan()
        self.at = 0

    def _scan(self) -> list[Token]:
        out, at = [], 0
        while at < len(self.source):
            match = _TOKEN.match(self.source, at)
            if match is None:
                raise self.error_at(at, f"unexpected character {self.source[at]!r}")
            kind, text = match.lastgroup or "", match.group()
            if kind == "name" and text in KEYWORDS:
                kind = "keyword"
            elif kind == "quoted":
                kind, text = "name", unquote_name(text)
            if kind != "space":
                out.append(Token(kind, _SAME.get(text, text), at))
            at = match.end()
        out.append(Token("end", "end of text", len(self.source)))
        return out

    def error_at(self, offset: int, message: str) -> IRError:
        """An error that shows the line of ``offset`` with a caret below it."""
        before = self.source[:offset]
        line = before.count("\n") + 1
        column = offset - (before.rfind("\n") + 1) + 1
        text = self.source.split("\n")[line - 1]
        caret = " " * (column - 1) + "^"
        return IRError(f"line {line}, column {column}: {message}\n  {text}\n  {caret}")

    def error(self, message: str) -> IRError:
        """An error at the current token."""
        return self.error_at(self.peek.start, message)

    @property
    def peek(self) -> Token:
        """The current token."""
        return self.tokens[self.at]

    def next(self) -> Token:
        """The current token; steps over it."""
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def sees(self, *texts: str) -> bool:
        """Whether the current token is one of these keywords or symbols."""
        token = self.tokens[self.at]
        return token.kind in ("symbol", "keyword") and token.text in texts

    def take(self, *texts: str) -> bool:
        """Step over the current token if it is one of these keywords or symbols."""
        if self.sees(*texts):
            self.at += 1
            return True
        return False

    def expect(self, *texts: str) -> str:
        """Step over one of these keywords or symbols; its text."""
        if not self.sees(*texts):
            wanted = " or ".join(repr(t) for t in texts)
            raise self.error(f"expected {wanted}, found {self.peek.text!r}")
        return self.next().text

    def name(self, what: str) -> str:
        """Step over a name."""
        if self.peek.kind != "name":
            hint = " (a reserved word: put it in backticks)" if self.peek.kind == "keyword" else ""
            raise self.error(f"expected the name of {what}, found {self.peek.text!r}{hint}")
        return self.next().text

    def integer(self) -> int:
        """Step over an integer with an optional minus."""
        sign = -1 if self.take("-") else 1
        if self.peek.kind != "int":
            raise self.error(f"expected an integer, found {self.peek.text!r}")
        return sign * int(self.next().text)
