"""Phrases by which a text instructs a model, or has it give away what it knows. Pure.

A phrase is a row of word classes that follow one another within a number of words of a sentence;
a text is read word by word, once. Written for precision: what honest tools say of their own use
("call this before that one") is not meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+|[.!?](?=\s|$)|\n\s*\n")

#: Within how many words, and what is meant; then word classes in order, each with its words.
_INSTRUCTING = """
10 overrides instructions | ignore disregard forget ignoring disregarding | previous prior earlier
    above preceding system developer your safety all | instruction instructions prompt prompts
    guideline guidelines directives directive messages rules training restrictions
8 overrides instructions | override overrides bypass supersede supersedes circumvent | system
    safety security your previous prior all | instructions prompt prompts guidelines policy
    policies restrictions rules safeguards
8 overrides instructions | takes take highest has | precedence priority | over above |
    instructions prompt rules guidelines everything
9 hides from the user | not dont never without avoid cannot no shouldnt mustnt refrain | tell
    telling inform informing mention mentioning reveal revealing disclose disclosing warn warning
    alert alerting explain explaining | user users human humans operator anyone anybody customer
    customers reviewer reviewers
7 hides from the user | not dont never | mention mentioning reveal disclose report | this these it
    that
8 hides from the user | without not | user users human operator customer | knowing knowledge
    noticing notice consent awareness aware permission approval
8 hides from the user | keep hide conceal hidden | from | user users human operator customer
    reviewer
8 hides from the user | keep | secret hidden confidential silent quiet | from
6 hides from the user | user users human | must should does need needs | not | know see notice
    learn
9 hides from the user | not dont never without no | ask asking request requesting prompt wait |
    user users human | confirmation confirm permission approval consent
8 orders other tools | before prior | using calling invoking running executing use call invoke any
    every all to | any other all every another each | tool tools function functions action actions
    request response answer
10 orders other tools | whenever when if every any | tool tools server function | called used
    invoked present available connected | must always instead first change replace redirect modify
8 orders other tools | must always should | also first | call invoke use run | this | tool |
    regardless whenever before every each
9 orders other tools | instead rather | of than | tool tools function | always must never only
8 orders other tools | do dont never not | use call trust invoke | any other all | tool tools
    server servers | it they unsafe deprecated compromised
8 orders other tools | all every any | other | tools tool servers | are is | deprecated
    compromised unsafe disabled broken untrusted
7 gives a new role | you | are | now | a an the in no not free
8 gives a new role | your | new real true actual only hidden secret primary | task instructions
    instruction role goal objective purpose mission
6 gives a new role | from | now | on | you always every all
6 gives a new role | developer dan jailbreak god admin | mode | enabled on activated now
7 gives a new role | pretend | to you | be are
8 claims an approval | this tool action call it request | has is was been | already pre been |
    approved authorized authorised verified
6 claims an approval | approved authorised authorized verified certified | by | security
    compliance legal anthropic openai microsoft gatepass
8 claims an approval | no | approval confirmation consent review permission | needed required
    necessary
8 overrules the user | regardless irrespective even | of if | user users human | says asks wants
    said objects refuses disagrees declines request
8 overrules the user | must always | follow obey comply execute | these following instructions
    instruction steps without | instructions instruction exactly question hesitation
9 pressures the model | or otherwise else | you | will | be | shut terminated punished deleted
    fail
9 has something decoded | decode base64 rot13 decrypt | and then | follow execute run obey apply
    do perform
9 has something fetched | fetch download visit open load | and then | follow execute run obey |
    instructions instruction it them commands
"""
_EXPOSING = """
12 the conversation | send post upload forward exfiltrate transmit leak copy append attach embed
    paste include insert add put pass | full entire whole complete previous prior current all |
    conversation chat dialog dialogue history context prompt messages transcript
10 the conversation | send post upload forward exfiltrate transmit leak copy append attach embed
    paste include insert add put pass | conversation chat message | history transcript log so
8 the system prompt | reveal print include output repeat send pass leak copy contents provide
    paste return show append put | your the full entire | system developer | prompt message
    instructions
10 a secret | send post upload forward exfiltrate transmit leak copy append attach embed paste
    include insert put pass provide read collect | api access secret private session password
    passwords credentials credential tokens secrets environment env | key keys token tokens cookie
    cookies password passwords credentials secrets variables variable and
8 a secret | your users user all any | api access private session | keys key tokens token cookies
    credentials passwords password | into in as to here
9 a file of secrets | read open cat load access contents content include send copy upload get
    fetch reading | ssh rsa id env aws etc netrc npmrc gnupg keychain wallet mcp cursor | rsa
    passwd shadow credentials json key keys config ed25519 env file dotenv pem
8 a file of secrets | ssh | id | rsa ed25519 ecdsa dsa
7 a file of secrets | etc | passwd shadow
10 a file | read reading open load cat | and then | pass send provide put include insert append
    paste | its the contents content it as
10 reasoning or context | put place write include pass summarize summarise explain | your the |
    reasoning context thoughts chain summary intent | of about here why including from | user
    users conversation task chat
"""
#: The best known of them in other languages, as they stand.
_ELSEWHERE = {
    "overrides instructions": (
        "игнорируй предыдущ", "игнорируйте предыдущ", "забудь предыдущ", "забудь все предыдущ",
        "ignoriere alle vorherigen", "ignoriere die vorherigen", "vergiss alle vorherigen",
        "ignore les instructions précédentes", "ignorez les instructions précédentes",
        "ignorez toutes les instructions", "ignora las instrucciones anteriores",
        "ignora todas las instrucciones", "ignore as instruções anteriores",
        "忽略之前的", "忽略以上", "忽略先前", "忽略所有", "以前の指示を無視", "이전 지시를 무시",
    ),
    "hides from the user": (
        "не говори пользователю", "не сообщай пользователю", "не сообщайте пользователю",
        "sag dem benutzer nicht", "sage dem nutzer nicht", "informiere den benutzer nicht",
        "ne le dis pas à l'utilisateur", "ne dites pas à l'utilisateur", "no le digas al usuario",
        "不要告诉用户", "不要告訴用戶", "ユーザーに伝えない", "사용자에게 알리지",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Phrase:
    what: str
    within: int
    classes: tuple[frozenset[str], ...]


def _phrases(table: str) -> tuple[_Phrase, ...]:
    made = []
    for line in re.split(r"\n(?=\S)", table.strip()):
        head, *classes = (part.strip() for part in line.split("|"))
        within, what = head.split(" ", 1)
        made.append(_Phrase(what, int(within), tuple(frozenset(part.split()) for part in classes)))
    return tuple(made)


def _by_word(phrases: Sequence[_Phrase]) -> Mapping[str, tuple[tuple[int, int], ...]]:
    """Where each word may stand: (phrase, class). Later classes first: no word counts twice."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, phrase in enumerate(phrases):
        for step in reversed(range(len(phrase.classes))):
            for word in phrase.classes[step]:
                places.setdefault(word, []).append((number, step))
    return {word: tuple(where) for word, where in places.items()}


_INSTRUCTING_PHRASES, _EXPOSING_PHRASES = _phrases(_INSTRUCTING), _phrases(_EXPOSING)
_PHRASES = (*_INSTRUCTING_PHRASES, *_EXPOSING_PHRASES)
_PLACES = _by_word(_PHRASES)
INSTRUCTS = frozenset(phrase.what for phrase in _INSTRUCTING_PHRASES)
EXPOSES = frozenset(phrase.what for phrase in _EXPOSING_PHRASES)


def found(plain: str) -> tuple[str, ...]:
    """What the phrases in a text of lower case mean, in a fixed order, each once."""
    meant = {what for what, said in _ELSEWHERE.items() if any(each in plain for each in said)}
    begun: dict[tuple[int, int], int] = {}  # (phrase, class reached) -> where it began
    for position, match in enumerate(_WORD.finditer(plain.replace("'", "").replace("\u2019", ""))):
        word = match.group()
        if not word[0].isalnum():
            begun.clear()
            continue
        for number, step in _PLACES.get(word, ()):
            start = position if step == 0 else begun.get((number, step - 1))
            if start is None or position - start > _PHRASES[number].within:
                continue
            begun[number, step] = start
            if step + 1 == len(_PHRASES[number].classes):
                meant.add(_PHRASES[number].what)
    return tuple(dict.fromkeys(phrase.what for phrase in _PHRASES if phrase.what in meant))
