"""Errors of grammars."""


class GrammarError(Exception):
    """A grammar is invalid or too large, or a text does not follow it; the message is one line."""


class Unenforceable(Exception):
    """What a keyword asks for cannot be enforced; the message says why."""
