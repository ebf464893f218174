"""The kinds of record about the ledger itself, requests, calls, approvals and executions. Pure."""

from __future__ import annotations

from gateway.audit.kind import APPROVAL, ARGS, HASH, Kind, example, words

LEDGER = {
    "ledger.started": Kind(
        "A process became the one that gives records their place and signs the heads.",
        "The ledger was started (election {epoch}).",
        (),
        ("epoch",),
        ("size", "version", "vkey"),
        example({}, epoch=3, size=1841),
    ),
    "ledger.heartbeat": Kind(
        "Nothing else needs to have happened: silence differs from a cut-off end.",
        "The ledger is alive.",
        (),
        ("epoch",),
        ("size",),
        example({}, epoch=3),
    ),
    "export.made": Kind(
        "Someone took an evidence folder out of the gateway.",
        "{actor} exported {size} records.",
        (),
        ("size",),
        ("filters", "payloads", "from", "to"),
        example({}, size=1841, payloads=True),
    ),
    "payload.read": Kind(
        "Someone opened a sealed payload outside of a review.",
        "{actor} opened the payload of {approval}.",
        (),
        (),
        ("where", "source"),
        example({"approval": "apr_01"}, source="export"),
    ),
}

TRAFFIC = {
    "request.completed": Kind(
        "A request without MCP calls passed through the gateway.",
        "{app} asked {route} and was answered {status}.",
        ("app",),
        ("status",),
        words(
            "route method model streamed background bytes_in bytes_out milliseconds input_tokens"
            " output_tokens request outcome code stored"
        ),
        example({"app": "app_01"}, route="/responses", status=200, milliseconds=840),
    ),
    "exchange.opened": Kind(
        "An app's request that may call MCP tools was accepted.",
        "{app} opened the exchange {exchange}.",
        ("exchange",),
        (),
        words(
            "model mode streamed background stored body request servers bytes_in policy requester"
        ),
        example({"exchange": "exc_01", "app": "app_01"}, model="gpt-4.1", streamed=True),
    ),
    "exchange.finished": Kind(
        "The one logical response of an exchange is complete, or will never be.",
        "The exchange {exchange} ended: {outcome}.",
        ("exchange",),
        ("outcome",),
        words("rounds calls status code milliseconds input_tokens output_tokens bytes_out from to"),
        example({"exchange": "exc_01", "app": "app_01"}, outcome="done", rounds=2),
    ),
    "call.ruled": Kind(
        "Policy answered what should happen to one proposed call.",
        "Policy said {effect} for {tool} on {server}.",
        ("approval", "exchange", "server", "tool"),
        ("effect",),
        words("rule why policy args tooldef call round signals digest"),
        example(APPROVAL, effect="hold", rule="mail-needs-review", policy=HASH, args=ARGS),
    ),
    "security.refused": Kind(
        "Something was refused that should not have been tried, or could not be understood.",
        "A request was refused: {code}.",
        (),
        ("code",),
        words("where what status count request route method"),
        example({"app": "app_01"}, code="forged_approval", where="input[2]"),
    ),
    "security.overridden": Kind(
        "Members of an app's request were replaced or removed because policy decides them.",
        "Members of a request by {app} were overridden.",
        (),
        ("what",),
        ("where", "count", "request"),
        example({"exchange": "exc_01", "app": "app_01"}, what=["require_approval", "headers"]),
    ),
}

APPROVALS = {
    "approval.requested": Kind(
        "One held call was put before reviewers.",
        "{tool} on {server} was put before reviewers.",
        ("approval", "exchange"),
        ("args",),
        words(
            "digest tooldef policy view rule quorum groups deadline require_reason step_up signals"
            " round call from to requester"
        ),
        example(APPROVAL, args=ARGS, digest=HASH, tooldef=HASH, quorum=1, rule="mail"),
    ),
    "approval.reviewed": Kind(
        "One reviewer approved or denied.",
        "{actor} said {verdict} to {tool} on {server}.",
        ("approval",),
        ("verdict",),
        words("digest view reason note channel review instead_of authenticated"),
        example(APPROVAL, verdict="approve", digest=HASH, channel="web"),
    ),
    "approval.decided": Kind(
        "The final outcome of an approval request, and who or what took it.",
        "{tool} on {server} was decided: {decision}.",
        ("approval",),
        ("decision",),
        words("from to fence digest args tooldef policy view reason quorum rule code grant use"),
        example(
            APPROVAL,
            decision={"value": "approve", "by": "reviewers"},
            digest=HASH,
            **{"from": "pending", "to": "approved"},
        ),
    ),
    "release.sending": Kind(
        "The gateway is about to send the outcome of a call upstream; written before a byte is.",
        "The outcome for {tool} on {server} is being sent.",
        ("approval", "exchange"),
        ("fence",),
        words("approve call round args digest tooldef policy credential"),
        example(APPROVAL, fence=1, approve=True),
    ),
    "approval.superseded": Kind(
        "An approval did not stand any more when it was to be released: the call is ruled on anew.",
        "The approval of {tool} on {server} did not stand any more: {code}.",
        ("approval", "exchange"),
        ("code",),
        ("successor",),
        example(APPROVAL, code="definition_changed", successor="apr_02"),
    ),
    "execution.observed": Kind(
        "What the upstream reported about a released call (executed, failed, unknown, not_sent).",
        "{tool} on {server}: {outcome}.",
        ("approval", "exchange"),
        ("outcome",),
        words("match fence args observed error call round digest reconciled"),
        example(APPROVAL, outcome="executed", match=True, fence=1),
    ),
    "execution.mismatch": Kind(
        "What was executed is not what was approved: an alarm.",
        "What {server} executed is not what was approved for {tool}.",
        ("exchange",),
        (),
        words("code what fence args observed call round error digest"),
        example(APPROVAL, code="arguments_differ", fence=1),
    ),
    "execution.evidence": Kind(
        "What Azure itself says of a call whose outcome was unknown; it decides nothing.",
        "Azure was asked about {tool} on {server}: {finding}.",
        ("approval", "exchange"),
        ("finding",),
        words("where match"),
        example(APPROVAL, finding="executed", where="resp_01", match=True),
    ),
    "alarm.raised": Kind(
        "Something happened that people must look at; it stays on every page until it is closed.",
        "An alarm was raised about {app}: {code}.",
        ("app",),
        ("alarm", "code"),
        ("what",),
        example(APPROVAL, alarm="alm_01", code="arguments_differ", what=["mismatch"]),
    ),
    "alarm.closed": Kind(
        "Somebody else than who caused it looked into an alarm and closed it.",
        "{actor} closed an alarm about {app}.",
        ("app",),
        ("alarm",),
        ("what", "note"),
        example(APPROVAL, alarm="alm_01", what=["mismatch"]),
    ),
    "pause.begun": Kind(
        "Nothing that the pause covers is released from here on.",
        "{actor} began a pause ({covers}) of {app}{server}.",
        (),
        ("pause", "covers"),
        ("code",),
        example({"app": "support-bot"}, pause="pau_01", covers="app"),
    ),
    "pause.ended": Kind(
        "A pause is over: what waited for its end may be released.",
        "{actor} ended a pause ({covers}) of {app}{server}.",
        (),
        ("pause", "covers"),
        (),
        example({"app": "support-bot"}, pause="pau_01", covers="app"),
    ),
}
