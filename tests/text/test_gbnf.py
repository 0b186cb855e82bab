"""Grammars of llama.cpp, with texts that they take and refuse by its documentation."""

import pytest

from tgi.text.gbnf import is_gbnf
from tgi.text.grammar import GrammarError

from .matching import accepts, compiled

ARITHMETIC = """
# root is a list of equations
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        (ARITHMETIC, ["a+1=2\n", "(a *b_1)=c\nx=1\n"], ["a+1=2", "a+=2\n", "1"]),
        ('root ::= "a"{5,5}', ["aaaaa"], ["aaaa", "aaaaaa"]),
        ('root ::= "a"{2} ("b" | "c"){,2} "d"{1,}', ["aad", "aabcddd"], ["ad", "aabbbd", "aab"]),
        (r'root ::= "\xe9\u00e9\U000000e9" [\xe8-\xea] "\t\"\\"', ['éééé\t"\\'], ["eeee"]),
        (r'root ::= [a-z\]\[/-]+ [^\n"^-]', ["a][/-/x", "a:"], ['a"', "a\n", "a^", "a-", "A:"]),
        ('root ::= . "x".', ["ax\n", "éx/"], ["ax", "x"]),
        ("root ::=", [""], ["a"]),
        ('root ::= ("a" | )"b" |', ["", "b", "ab"], ["a"]),
        ('root ::= "a"?\n  | "b" |\n"c" # other\nrest ::= "d"', ["", "a", "b", "c"], ["d"]),
        ('root ::= a-b a_b root?\na-b ::= "q"\na_b ::= "z"', ["qz", "qzqz"], ["qq", "q"]),
        ('root ::= "x" start\nstart ::= "a"', ["xa"], ["x"]),
        # A text that may be split in several ways.
        ('root ::= [a-z]+ "ing"', ["sing", "singing", "inging"], ["ing", "sin"]),
        ('root ::= ("a" | "ab") "bc"', ["abc", "abbc"], ["ab", "abb"]),
        ('root ::= word " "* word " "* \nword ::= [a-z]+ " "', ["a b ", "a   b  "], ["ab "]),
    ],
)
def test_a_grammar_takes_its_texts_and_no_others(grammar: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not accepts("ebnf", grammar, text)] == []
    assert [text for text in no if accepts("ebnf", grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "a"\nother ::= @', "line 2 of the grammar: '@' makes no sense"),
        ('root ::= "a', "line 1 of the grammar: '\"a' makes no sense"),
        ('foo ::= "a"', "the grammar has no rule `root`"),
        ('root ::= "a" foo', "the grammar has no rule `foo`"),
        ('root ::= ("a"', "Expected token"),
        ("nonsense", "Expected token"),
        ('start: %schema\t{"x": 1}', "lexer error"),
    ],
)
def test_what_is_no_grammar_is_refused(grammar: str, words: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        compiled("ebnf", grammar)
    assert words in str(refusal.value)


def test_other_grammars_are_larks() -> None:
    rule = '"a" NUM\nNUM: /[0-9]+/'
    for grammar in (f"start: {rule}", f"?start: {rule}", f"%llguidance {{}}\nstart: {rule}"):
        assert not is_gbnf(grammar)
        assert accepts("ebnf", grammar, "a1")
        assert not accepts("ebnf", grammar, "a")
