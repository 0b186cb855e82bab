"""Errors of grammars."""


class GrammarError(Exception):
    """A grammar is invalid or too large, or a text does not follow it; the message is one line."""


class Unenforceable(Exception):
    """A demand of a keyword cannot be enforced; the message says why."""
