"""Sentences chosen by a code: states, hazards, outcomes, errors. English here, other languages
in the catalogs. Pure; puts nothing of a payload into a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from web.translation import N_

STATES: Mapping[str, str] = MappingProxyType(
    {
        "pending": N_("Waiting"),
        "approved": N_("Approved"),
        "denied": N_("Denied"),
        "expired": N_("Expired"),
        "cancelled": N_("Cancelled"),
    }
)

DECIDERS: Mapping[str, str] = MappingProxyType(
    {
        "reviewers": N_("reviewers"),
        "policy": N_("policy"),
        "grant": N_("a remembered approval"),
        "expiry": N_("the deadline"),
        "cancelled": N_("withdrawal of the request"),
    }
)

HAZARDS: Mapping[str, str] = MappingProxyType(
    {
        "not_json": N_("This is not JSON. Read the exact string."),
        "too_deep": N_("Nested more than 32 levels deep. Read the exact string."),
        "repeated_key": N_("A key appears more than once; programs differ in which one they use:"),
        "similar_key": N_("Keys that some programs take for the same one:"),
        "loaded_key": N_("A key with a special meaning in some programs:"),
        "number_precision": N_("A number that programs may read differently:"),
        "not_a_number": N_("Not a JSON number:"),
        "hidden_character": N_("Hidden or disguising character:"),
        "hidden_message": N_("Invisible tag characters spell:"),
        "mixed_script": N_("A word with look-alike letters of several alphabets:"),
    }
)

# The same in other languages; in English a signal brings its own, more exact sentence.
SIGNALS: Mapping[str, str] = MappingProxyType(
    {
        "not_json": N_("The arguments are not valid JSON; the server may read them otherwise."),
        "not_an_object": N_("The arguments are not a JSON object; tools expect one."),
        "duplicate_keys": N_("The arguments name a member twice; which one counts is not certain."),
        "lookalike_keys": N_("The arguments have members that some programs take for one."),
        "prototype_keys": N_("The arguments have a member with a special meaning in programs."),
        "inexact_numbers": N_("The arguments hold a number that not every program keeps exactly."),
        "broken_text": N_("The arguments hold text with NUL or half a character."),
        "deep": N_("The arguments are nested more than 32 levels deep."),
        "bidi_characters": N_("The call contains characters that reverse the direction of text."),
        "hidden_characters": N_("The call contains characters that do not show on a screen."),
        "destructive_tool": N_("The server declares this tool as destructive."),
        "writing_tool": N_("The server declares that this tool changes things."),
        "unannotated_tool": N_("The server does not say whether this tool only reads."),
        "very_large": N_("The arguments are very large."),
        "unexamined": N_("The arguments could not be examined in time."),
        "secret_like": N_("The arguments contain what looks like a key or a token."),
        "lookalike_host": N_("The arguments hold a web address that may look like another one."),
        "definition_changed": N_("The tool's definition has changed since it was accepted."),
        "tool_unlisted": N_("The server has never listed this tool."),
        "tool_gone": N_("The newest list of the server does not hold this tool."),
        "tool_new": N_("The tool is new on its server, and nobody has accepted it."),
        "other_definition_shown": N_(
            "The model was shown another definition of this tool than the pinned one."
        ),
        "lookalike_server": N_("Another server has a name that is easily taken for this one's."),
        "text_hidden": N_("The server's text on this tool holds something that does not show."),
        "text_reversed": N_("The server's text on this tool reverses the direction of text."),
        "text_lookalike": N_("The server's text on this tool mixes look-alike alphabets."),
        "text_instructs": N_("The server's text on this tool gives orders to the model."),
        "text_exposes": N_("The server's text on this tool asks for what is not its business."),
        "text_sends": N_("The server's text on this tool has an image, or somewhere to send to."),
        "text_encoded": N_("The server's text on this tool holds encoded text."),
        "text_long": N_("The server's text on this tool is very long."),
        "first_use": N_("This app uses this tool for the first time."),
    }
)

# Signals that need not be shown where the viewer names the same thing and where it stands.
COVERED: Mapping[str, str] = MappingProxyType(
    {
        "not_json": "not_json",
        "deep": "too_deep",
        "duplicate_keys": "repeated_key",
        "lookalike_keys": "similar_key",
        "prototype_keys": "loaded_key",
        "inexact_numbers": "number_precision",
        "hidden_characters": "hidden_character",
    }
)

EFFECT_SIGNALS = frozenset({"destructive_tool", "writing_tool", "unannotated_tool"})
EFFECTS: Mapping[str, str] = MappingProxyType(
    {
        "reads": N_("The server says that this tool only reads; nobody here has checked that."),
        "destroys": N_("The server says that this tool may change or delete things for good."),
        "writes": N_("The server says that this tool changes things."),
        "unsaid": N_("The server does not say whether this tool only reads."),
    }
)

# Title and what happened next, by state and execution; "sent" and "executed" only when observed.
OUTCOMES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "approved": (
            "waiting",
            N_("Approved, not executed yet"),
            N_("The approval is recorded. The call is released when its round is decided."),
        ),
        "given up": (
            "over",
            N_("Approved, but not sent"),
            N_("The app's request ended before the call was sent. It will not be sent any more."),
        ),
        "approved sending": (
            "waiting",
            N_("Approved, being sent"),
            N_("The approval is on its way to Azure. The outcome is not known yet."),
        ),
        "approved executed": (
            "good",
            N_("Approved and executed"),
            N_("What was executed is byte for byte what was approved."),
        ),
        "approved mismatch": (
            "alarm",
            N_("Executed, but not as approved"),
            N_("What was executed differs from what was approved. Treat this as an incident."),
        ),
        "approved unmatched": (
            "waiting",
            N_("Approved and executed"),
            N_("The arguments that were executed could not be compared."),
        ),
        "approved failed": (
            "bad",
            N_("Approved, but the call failed"),
            N_("The server or Azure reported a failure. It is not repeated by itself."),
        ),
        "approved unknown": (
            "unknown",
            N_("Approved, outcome unknown"),
            N_("Whether the call was executed could not be observed. It is never sent again."),
        ),
        "superseded": (
            "over",
            N_("Approved, but not sent"),
            N_("What the approval rested on had changed, so the call was ruled on anew."),
        ),
        "settled executed": (
            "waiting",
            N_("Approved, and executed as somebody found out"),
            N_("Its outcome was unknown until a person settled it."),
        ),
        "settled not_executed": (
            "over",
            N_("Approved, and not executed as somebody found out"),
            N_("Its outcome was unknown until a person settled it. It is never sent again."),
        ),
        "denied": (
            "bad",
            N_("Denied, not sent"),
            N_("The call was not made. The model was told so."),
        ),
        "expired": (
            "over",
            N_("Expired, not sent"),
            N_("Nobody decided in time, so the call was not made."),
        ),
        "cancelled": (
            "over",
            N_("Cancelled, not sent"),
            N_("Nobody waits for the answer any more, so the call was not made."),
        ),
    }
)

FINDINGS: Mapping[str, str] = MappingProxyType(
    {
        "executed": N_("Azure shows that it was executed."),
        "failed": N_("Azure shows that the call failed."),
        "absent": N_("Azure ended the response without this call."),
        "unavailable": N_("Azure shows nothing of it, or not yet."),
    }
)

ALARMS: Mapping[str, str] = MappingProxyType(
    {
        "mismatch": N_("Something else was executed than had been approved"),
        "late_execution": N_("A call was executed that had been settled as not executed"),
        "break_glass": N_("Somebody decided alone in an emergency"),
    }
)

CONFLICTS: Mapping[str, str] = MappingProxyType(
    {
        "already_decided": N_("Somebody was first: this request is already settled."),
        "already_reviewed": N_("You have reviewed this request before; that review stands."),
        "expired": N_("The deadline has passed. The call will not be made."),
        "digest_stale": N_(
            "The request is not the one you were shown. Look at it again before you decide."
        ),
        "digest_broken": N_(
            "What is stored was altered since it was asked for. Nobody can approve it; tell "
            "whoever runs Gatepass."
        ),
    }
)

# Why something was refused, by its code; what is not here is said in the words of the refusal.
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "not_decided": N_(
            "This is not decided by a quorum of reviewers yet. Remember it once it is."
        ),
        "always_asks": N_("The rule always asks: its approvals are not remembered."),
        "not_rememberable": N_(
            "The server or the tool has changed since, or the arguments can be read in more than "
            "one way: only what is the same can be remembered."
        ),
        "reviewer_excluded": N_("You may not decide about this request; somebody else has to."),
        "tool_definition_stale": N_(
            "Another definition has been listed since you looked. Nothing was accepted; look at "
            "this one."
        ),
        "step_up_needed": N_("The rule asks for a fresh sign-in: sign in again, then decide."),
    }
)

# Why somebody who came from the identity provider was not let in. Nothing of a token stands here.
SIGN_INS: Mapping[str, str] = MappingProxyType(
    {
        "no_role": N_("You are known, but you have no role here. Somebody has to give you one."),
        "user_disabled": N_("You are shut out here. An admin can let you in again."),
        "no_email": N_(
            "The identity provider did not tell your e-mail address. Whoever runs it can add it to "
            "the sign-in."
        ),
        "email_unverified": N_("The identity provider has not verified your e-mail address."),
        "groups_overage": N_(
            "You are in more groups than the identity provider puts into a sign-in. Whoever runs "
            "it can send only the groups that are assigned to this application, or use roles."
        ),
        "address_taken": N_(
            "Somebody here has your e-mail address already. If that is you, ask an admin for a "
            "one-time link and go on from there."
        ),
        "other_address": N_("The link that you opened is for another e-mail address."),
        "identity_taken": N_("The link that you opened is for somebody else."),
        "last_admin": N_("You are the last admin here; somebody else has to be one first."),
        "link_invalid": N_("The link that you opened was used or has expired."),
        "link_not_enough": N_("You sign in through the identity provider; a link is not enough."),
        "no_attempt": N_("This browser has not begun to sign in, or lost its cookie. Try again."),
        "attempt_expired": N_("Signing in took too long. Try again."),
        "used_before": N_("This way in was used already. Try again."),
        "provider_refused": N_("The identity provider did not sign you in."),
        "not_fresh": N_(
            "You have to sign in anew for this, and the identity provider did not ask you to, or "
            "does not say when you did."
        ),
        "issuer_unavailable": N_("The identity provider does not answer. Try again in a moment."),
        "not_found": N_("There is no identity provider here."),
        "other": N_(
            "The answer of the identity provider does not hold. Try again; if that does not help, "
            "give the code to whoever runs Gatepass."
        ),
    }
)
ASK_AN_ADMIN = frozenset({"no_role", "user_disabled", "address_taken"})

SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "app": N_("any request of the app"),
        "end_user": N_("the end user"),
        "thread": N_("this conversation"),
    }
)

GRANT_STATES: Mapping[str, str] = MappingProxyType(
    {
        "live": N_("answers calls"),
        "used_up": N_("used up"),
        "expired": N_("over"),
        "ended": N_("ended"),
    }
)

GRANT_ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        "revoked": N_("revoked"),
        "definition_changed": N_("the tool's definition changed"),
        "server_changed": N_("the server's address changed"),
    }
)

DELEGATION_STATES: Mapping[str, str] = MappingProxyType(
    {
        "planned": N_("planned"),
        "active": N_("active"),
        "over": N_("over"),
        "revoked": N_("revoked"),
    }
)

# Tone, icon and word, by what has to be said of a server or a tool.
SERVER_STATES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "paused": ("wait", "pause", N_("Paused")),
        "no_value": ("bad", "key", N_("No value stored")),
        "changed": ("wait", "warning", N_("Tools to look at")),
        "unbound": ("bad", "key", N_("Credential not bound")),
        "registered": ("over", "server", N_("Registered")),
    }
)

TOOL_STATES: Mapping[str, tuple[str, str, str, str]] = MappingProxyType(
    {
        "pinned": (
            "good",
            "approved",
            N_("Accepted"),
            N_("What the server lists is what was accepted."),
        ),
        "changed": (
            "wait",
            "warning",
            N_("Changed"),
            N_("The server lists another definition than the accepted one. Every call is held."),
        ),
        "new": (
            "wait",
            "pending",
            N_("New"),
            N_("Nobody has accepted this tool yet. Every call is held."),
        ),
        "gone": (
            "over",
            "cancelled",
            N_("Not listed any more"),
            N_("The server does not list this tool any more. Every call is held."),
        ),
        "refused": (
            "bad",
            "denied",
            N_("Rejected"),
            N_("Somebody has rejected this definition. Every call is denied."),
        ),
    }
)

# What a server claims of its tool, for a column.
CLAIMS: Mapping[str, str] = MappingProxyType(
    {
        "reads": N_("only reads"),
        "destroys": N_("may destroy"),
        "writes": N_("changes things"),
        "unsaid": N_("does not say"),
    }
)

# What a test of a server tells, by the name of the member.
PROBED: Mapping[str, str] = MappingProxyType(
    {
        "name": N_("Calls itself"),
        "protocol": N_("Protocol"),
        "instructions": N_("Tells the model"),
        "address": N_("Reached at"),
        "tls": N_("Encryption"),
        "subject": N_("Certificate of"),
        "issuer": N_("Issued by"),
        "challenge": N_("Asks for"),
        "connect": N_("connecting"),
        "initialize": N_("greeting"),
        "list_tools": N_("listing tools"),
    }
)

# The same in other languages; in English a test brings its own, more exact sentence.
PROBE_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "answered": N_("The server listed its tools."),
        "credential_refused": N_("The server refused the credential."),
        "credential_wanted": N_("The server wants a credential."),
        "credential_unavailable": N_("The value of the credential cannot be opened."),
        "failing": N_("The server answered with an error."),
        "not_mcp": N_("What answers there is not an MCP server."),
        "not_http": N_("What answers there does not speak HTTP as it should."),
        "redirected": N_("The server redirects to another address, which is not followed."),
        "blocked": N_("Connections to this address are not allowed."),
        "too_much": N_("The server answered with more than is read."),
        "too_slow": N_("The server did not answer in time."),
        "unreachable": N_("The server cannot be reached."),
        "cut": N_("The server cut the connection in the middle of an answer."),
        "tls_failed": N_("The server's certificate is not accepted."),
        "open_to_strangers": N_(
            "The server answers without its credential: whoever reaches it may use it."
        ),
        "no_credential": N_("The server wants no credential: whoever reaches it may use it."),
        "plain_http": N_("The connection is not encrypted: a credential can be read on the way."),
        "certificate_ends_soon": N_("The server's certificate ends soon."),
        "list_too_long": N_("The server lists more tools than are read; none of them is noted."),
        "tools_not_pinned": N_("The list of tools cannot be relied on; none of them is noted."),
        "no_tools": N_("The server lists no tools."),
    }
)

ERRORS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        400: (N_("This cannot be accepted"), N_("Go back and correct what is named above.")),
        401: (N_("Not signed in"), N_("Ask an admin for a new sign-in link.")),
        403: (N_("You may not do this"), N_("Your roles do not include it. An admin can help.")),
        404: (
            N_("There is nothing here"),
            N_("The address is wrong, or what it named is not yours to see."),
        ),
        405: (N_("There is nothing here"), N_("This address takes no such request.")),
        409: (N_("Somebody was first"), N_("Nothing was changed. Look again before you decide.")),
        500: (
            N_("Something went wrong here"),
            N_("Nothing was decided by this page. Give the request id to whoever runs Gatepass."),
        ),
        502: (N_("A remote side failed"), N_("Nothing was decided by this page. Try again.")),
        503: (
            N_("A part of Gatepass cannot answer"),
            N_("Nothing is released meanwhile. Try again in a moment."),
        ),
    }
)

# Values of record fields that stand inside sentences.
VALUES: Mapping[str, str] = MappingProxyType(
    {
        "approve": N_("approve"),
        "deny": N_("deny"),
        "allow": N_("allow"),
        "hold": N_("hold"),
        "executed": N_("executed"),
        "failed": N_("failed"),
        "unknown": N_("unknown"),
        "not_sent": N_("not sent"),
        "done": N_("done"),
        "cancelled": N_("cancelled"),
        "reviewers": N_("reviewers"),
        "policy": N_("policy"),
        "grant": N_("a remembered approval"),
        "expiry": N_("the deadline"),
        "system": N_("The gateway"),
    }
)

LANGUAGES: Mapping[str, str] = MappingProxyType({"en": "English", "ru": "Русский"})


def effect_of(definition: Mapping[str, object] | None) -> str:
    """Which of EFFECTS a tool's own annotations claim."""
    annotations = (definition or {}).get("annotations")
    if not isinstance(annotations, Mapping):
        return "unsaid"
    read_only = annotations.get("readOnlyHint", annotations.get("read_only"))
    destructive = annotations.get("destructiveHint", annotations.get("destructive"))
    if read_only is True:
        return "reads"
    if destructive is True:
        return "destroys"
    return "writes" if read_only is False or destructive is False else "unsaid"


def outcome_of(state: str, execution: str, match: bool | None) -> str:
    """Which of OUTCOMES a settled request has reached."""
    if state != "approved" or execution == "not_sent":
        return state
    if match is False:
        return "approved mismatch"
    if execution == "executed" and match is None:
        return "approved unmatched"
    return f"approved {execution}"
